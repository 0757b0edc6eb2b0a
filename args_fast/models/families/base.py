"""The decoder layers of one model as ``args_fast.ops.decoder_layers`` takes them, and the checks
that a model is taken apart with: whatever is not exactly as expected makes it Unknown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from args_fast.models.compact import CompactLinear
from args_fast.ops.linear import cpu_linear
from args_fast.ops.schemas import LAYER_WEIGHTS, MATRICES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "ReLU": "relu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Layers:
    """The layers of one model, as the op takes them.

    Attributes:
        modules: those that hold what ``weights`` is made of.
        weights: LAYER_WEIGHTS of each layer, the parameters or views of them; called again when a
            module has another parameter, or one that is viewed has moved.
        matrices: of each layer, by the names of MATRICES, the module that a matrix is of, and which
            of its outputs are its rows.
        scales, windows: of each layer's attention.
        norm, eps, activation, pre_norm: as in ``args_fast.ops.plain_layers.decoder_layers``.
        final_norm: the module after the last layer; None where there is none.
        embed: ids [B, N], and what gives their positions -> the rows before the first layer
            [B, N, H].
        tables: the embeddings of tokens, those of positions or None, and the row of position 0 in
            these, where ``embed`` is their sum; None where it is something else.
        rotary: (rows, positions) -> cosines and sines [B, N, R]; None without rotary positions.
        project: from the rows after the layers to the last hidden state; None for themselves.
        called: the modules that are called; hooks on these run.
    """

    modules: list[nn.Module]
    weights: Callable[[], list[Tensor]]
    matrices: list[dict[str, tuple[nn.Module, slice]]]
    scales: list[float]
    windows: list[int]
    norm: str
    eps: float
    activation: str
    pre_norm: bool
    final_norm: nn.Module | None
    embed: Callable[[Tensor, Callable[[], Tensor]], Tensor]
    tables: tuple[nn.Embedding, nn.Embedding | None, int] | None
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    project: nn.Module | None
    called: list[nn.Module]


EVERY_ROW = slice(None)


class Unknown(Exception):
    """Something in a model is not what is expected; the message says what."""


def check_weights(base: nn.Module) -> None:
    parameters = list(base.parameters())
    if any(type(p) is not nn.Parameter or type(p.data) is not Tensor for p in parameters):
        raise Unknown("it has weights of another kind than plain tensors")
    if len({(p.dtype, p.device) for p in parameters}) != 1:
        raise Unknown("its weights are of several types, or in several places")
    if parameters[0].dtype not in DTYPES or parameters[0].device.type not in ("cpu", "cuda"):
        raise Unknown(f"its weights are {parameters[0].dtype} on {parameters[0].device}")
    for module in base.modules():
        if "forward" in vars(module):
            raise Unknown(f"a {type(module).__name__} has a forward that is not its class's")


def is_class(module: nn.Module, name: str, kind: str) -> bool:
    own = type(module)
    where = f"transformers.models.{name}.modeling_{name}"
    return own.__module__ == where and own.__name__ == kind


def expect(module: nn.Module, kind: type | tuple[str, str], parts: Sequence[str] = ()) -> None:
    """The module is of a class itself, not of a subclass, and has these parts and no others."""
    right = type(module) is kind if isinstance(kind, type) else is_class(module, *kind)
    if not right:
        raise Unknown(f"a {type(module).__name__} stands where {kind} is expected")
    has = {name for name, part in module.named_children() if part is not None}
    if has != set(parts):
        raise Unknown(f"a {type(module).__name__} has the parts {', '.join(sorted(has))}")


def expect_linear(module: nn.Module) -> None:
    """The module is a linear layer, of plain or compact weights."""
    expect(module, CompactLinear if type(module) is CompactLinear else nn.Linear)


def activation_of(module: nn.Module) -> str:
    name = ACTIVATIONS.get(type(module).__name__)
    if name is None or not type(module).__module__.startswith(("torch.nn", "transformers.")):
        raise Unknown(f"the activation {type(module).__name__} is not known")
    return name


def common(values: Sequence[Any], name: str) -> Any:
    """The value that all have."""
    if len(set(values)) != 1:
        raise Unknown(f"its layers have different {name}: {sorted(map(str, set(values)))}")
    return values[0]


def in_order(layers: Sequence[dict[str, Tensor | None]]) -> list[Tensor]:
    """The op's list of weights, with empty tensors for those that are not there."""
    some = next(w for layer in layers for w in layer.values() if w is not None)
    empty = some.new_empty(0)
    matrices = [layer[name] for layer in layers for name in MATRICES if name in layer]
    common([matrix.dtype for matrix in matrices if matrix is not None], "types of weights")
    weights = [layer.get(name) for layer in layers for name in LAYER_WEIGHTS]
    return [empty if weight is None else weight for weight in weights]


def parts_of(name: str, module: Any) -> dict[str, Tensor | None]:
    scale = module.scale if type(module) is CompactLinear else None
    return {name: module.weight, f"{name}_bias": module.bias, f"{name}_scale": scale}


def product(module: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer computes, on the CPU by the kernel that gives a row the same bits in any
    batch."""
    if isinstance(module, CompactLinear) or cpu_linear is None or x.device.type != "cpu":
        return module(x)
    assert isinstance(module, nn.Linear)
    return cpu_linear(x, module.weight, module.bias)
