"""Weight-only quantization of the linear layers: fewer bytes to read for each token.

int8 and fp8 (e4m3) weights with one scale per row, activations and accumulation as before. It
changes the model: ``examples/quantized_weights.py`` reports how many of its choices. On
the CPU int8 is the C++ ops' own (``args_fast.models.compact``). The rest is torchao's, where the
bytes saved are time saved only if torch.compile fuses the conversion into the product.
"""

from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from args_fast.errors import ConfigError
from args_fast.models import placement
from args_fast.models.compact import keep_in_16_bits, quantize_linears
from args_fast.ops import cpp

KINDS = ("int8", "fp8")
FP8_CAPABILITY = (8, 9)  # Ada, Hopper and later convert it in hardware, and Triton only there


def check(kind: str | None, name: str, device: torch.device) -> None:
    """Raises ConfigError unless weights of this kind are available here; before anything is loaded.

    Args:
        kind: "int8", "fp8", or None for the weights as they are.
        name: of the argument, for the message.
        device: where the model will be.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise ConfigError(f"{name} is {kind!r}; it must be {' or '.join(KINDS)}, or None")
    if _is_own(kind, device):
        return
    if find_spec("torchao") is None:
        raise ConfigError(
            f"{name} is {kind!r}, which needs torchao; pip install 'args-fast[quant]', or leave "
            f"{name} out"
        )
    if kind == "fp8" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < FP8_CAPABILITY:
            raise ConfigError(
                f"{name} is 'fp8', but {torch.cuda.get_device_name(device)} has compute capability "
                f"{capability[0]}.{capability[1]} and no fp8; it begins with "
                f"{FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]}. Use 'int8'."
            )


def _is_own(kind: str, device: torch.device) -> bool:
    """Whether the C++ ops multiply with such weights there."""
    return kind == "int8" and device.type == "cpu" and cpp.status() == "built"


def quantize(module: nn.Module, kind: str | None) -> None:
    """Replace the weights of all linear layers within, in place; embeddings stay. An embedding that
    was tied to a head stays as it was, and the head has weights of its own from then on."""
    if kind is None:
        return
    if _is_own(kind, next(module.parameters()).device):
        quantize_linears(module)
        return
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    # Inductor's settings are the process's, and not for one model to change.
    configure = Int8WeightOnlyConfig if kind == "int8" else Float8WeightOnlyConfig
    quantize_(module, configure(set_inductor_config=False))


def prepare(model: PreTrainedModel, kind: str | None, *, head: bool = False) -> None:
    """What is done to the weights of a model that args-fast has loaded, in place: quantization of
    its linear layers, or on the CPU 16 bits where they hold float32 weights exactly; and one place
    for all of them.

    Args:
        model: in eval mode.
        kind: of quantization.
        head: with its output layer, as of a language model; else only within its base model.
    """
    quantize(model if head else model.base_model, kind)
    if kind is None:
        keep_in_16_bits(model, head=head)
    placement.gather(model)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers: of a quantized one its numbers and scales, of tied ones
    once."""
    pieces = [*module.parameters(), *module.buffers()]
    storages = {piece.data_ptr(): piece.nbytes for tensor in pieces for piece in plain(tensor)}
    return sum(storages.values())


def plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor is made of (torch's protocol for wrapper subclasses)."""
    if type(tensor) in (torch.Tensor, nn.Parameter):
        return [tensor.detach()]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [piece for name in names for piece in plain(getattr(tensor, name))]
