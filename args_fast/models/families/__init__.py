"""Which models have layers that the op ``decoder_layers`` knows.

A model is taken apart only if every module of it is exactly what is expected: its class, its parts
and their types, the activation, the type and the place of its weights. A subclass, an adapter, a
weight that others quantized, a module with another forward: each makes the model one that is not
known, and it is driven through its modules. A family is a file here, a line of FAMILIES, and a line
of tests/models/test_fused.py.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel

from args_fast.models.attention import AttentionOptions
from args_fast.models.families import gpt2, llama, opt
from args_fast.models.families.base import Layers, Unknown, check_weights

FAMILIES = (llama, opt, gpt2)


def layers_of(model: PreTrainedModel, options: Sequence[AttentionOptions]) -> Layers | str:
    """The layers of a model as the op takes them, or why it cannot.

    Args:
        model: a causal language model or a classifier of transformers.
        options: what each layer asks of its attention (``args_fast.models.probe``).
    """
    base = model.base_model
    try:
        check_weights(base)
        if any(asked.softcap or asked.sinks is not None for asked in options):
            raise Unknown("its attention has a softcap or sinks")
        for family in FAMILIES:
            if (layers := family.layers(base, options)) is not None:
                layers.weights()  # raises where they are of several types
                return layers
        return f"{type(base).__name__} is not one of the models that are known"
    except Unknown as reason:
        return str(reason)
