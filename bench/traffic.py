"""The bytes that a decode step cannot avoid reading.

    greedy   weights of the language model + B * t * (K/V of one token)
    ARGS     the same of the reward model on top: its prefix is read once for all k candidates

for B prompts with prefixes of t tokens. An embedding table counts only where it is the head as well
(tied weights). Activations, rows of tables and one row of K/V are left out: a thousandth of it.

Bytes over the time of a step are the GB/s in every table here. Bytes of ARGS over those of greedy
are the floor of the slowdown while reading is what takes the time: on a GPU, and at few rows.
"""

from torch import nn
from transformers import PreTrainedModel

from args_fast.models.compact import CompactLinear, weights_of


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that a forward pass reads whole; the model may be on the meta device."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linears = (nn.Linear, CompactLinear)
    products = {id(m.weight) for m in model.modules() if isinstance(m, linears)}
    return sum(w.nbytes for w in weights_of(model) if id(w) not in tables - products)


def cached_bytes(model: PreTrainedModel) -> int:
    """Bytes of the keys and values of one token, over all layers."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * kv_heads * head_size * model.dtype.itemsize


def step_bytes(*models: PreTrainedModel, prefix: int, batch: int = 1) -> int:
    """Bytes of one step: of the language model alone (greedy), or of both models (ARGS).

    Args:
        models: The models that take part.
        prefix: Tokens before the step, of every prompt.
        batch: Prompts that are decoded together.
    """
    return sum(weight_bytes(m) + batch * prefix * cached_bytes(m) for m in models)
