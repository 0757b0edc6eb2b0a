"""Linear layers with weights of fewer bytes than their activations, on the CPU, where reading the
weights is most of the time of a step.

Integers of 8 bits are another model (``args_fast.quantization``). 16 bits are not: nearly every
checkpoint is published in bfloat16 or float16, and one that is loaded in float32 has the same
numbers in twice the bytes. Where 16 bits hold every weight exactly they are kept in 16 bits, and
products widen them again as they read them: the same sums in float32, in half the time.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from args_fast.errors import UnsupportedModelError
from args_fast.models.forward import own_outputs
from args_fast.models.linear import DTYPES, FLOAT32_ROWS, FewRows, few_rows
from args_fast.ops.linear import cpu_linear

LARGEST = 127  # -128 is not used: scales are symmetric
OF_16_BITS = (torch.bfloat16, torch.float16)
TRIED = 5  # ids of the text that shows which layers are called
SAME = 1e-5  # largest relative error that rounding explains
SAMPLE = 1024  # weights of a layer that are looked at before a pass is made
# Rows up to which weights of float16 go to the kernel, and not to torch as floats that are made of
# them first. On an Intel Xeon, which has tiles, torch is faster from 90 rows on at 576 columns, 140
# at 2,048 and 370 at 4,096.
FLOAT16_ROWS = 4 * FLOAT32_ROWS
PIECE = 1 << 22  # weights that are compared at a time


class CompactLinear(nn.Module):
    """A linear layer whose weight is not of the type of its activations.

    Args:
        weight: [N, K] int8, bfloat16 or float16.
        bias: [N], or None.
        scale: [N] float32 of int8: row n stands for scale[n] * weight[n]. Else None.

    Attributes:
        weight, scale: buffers, so that parameters are of one type.
    """

    weight: Tensor
    scale: Tensor | None

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None, scale: Tensor | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        if cpu_linear is None or not self._is_direct(x):
            return F.linear(x, self.dequantized().to(x.dtype), self.bias)
        return cpu_linear(x, self.weight, self.bias, self.scale)

    def _is_direct(self, x: Tensor) -> bool:
        """Whether the kernel takes rows x, and is faster for that many than torch is for
        floats. It gives no gradients."""
        weight, bias = self.weight.dtype, self.bias
        wants_gradients = x.requires_grad or (bias is not None and bias.requires_grad)
        if wants_gradients and torch.is_grad_enabled():
            return False
        if x.device.type != "cpu" or x.dtype not in DTYPES:
            return False
        if bias is not None and bias.dtype != x.dtype:
            return False
        if x.dtype != torch.float32:
            return weight in (torch.int8, x.dtype)
        return weight != torch.float16 or x.numel() <= FLOAT16_ROWS * self.in_features

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Weights that the type does not hold are kept in their own."""
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and self.scale is None and not _holds(self.weight.dtype, weight):
            self.weight = torch.empty_like(weight, device=self.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def dequantized(self) -> Tensor:
        """The weight that the layer multiplies with: [N, K] float32."""
        return self.weight.float() if self.scale is None else self.weight * self.scale[:, None]

    def extra_repr(self) -> str:
        kind = str(self.weight.dtype).removeprefix("torch.")
        return f"in_features={self.in_features}, out_features={self.out_features}, weight={kind}"


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, and every weight that is kept in fewer bytes, by name."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, CompactLinear):
            yield f"{name}.weight", module.weight


def weights_of(model: nn.Module) -> Iterator[Tensor]:
    """The same without names."""
    return (weight for _, weight in named_weights(model))


def parameter_count(model: PreTrainedModel) -> int:
    """The numbers of a model, those of a head that is tied to the embeddings once."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    count = sum(weight.numel() for weight in weights_of(model))
    if isinstance(head, CompactLinear) and model.config.get_text_config().tie_word_embeddings:
        count -= head.weight.numel()
    return count


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with torch's own layers in the place of those of 16 bits, for what has to
    be independent of them; the model itself where it has none."""
    if not _places(model, is_of_16_bits):
        return model
    model = copy.deepcopy(model)
    widen(model)
    model.tie_weights()
    return model


def is_of_16_bits(layer: nn.Module) -> TypeGuard[CompactLinear]:
    return isinstance(layer, CompactLinear) and layer.scale is None


def widen(module: nn.Module) -> None:
    """Give all layers of 16 bits within their weights in float32 back, in place."""
    _replace(_places(module, is_of_16_bits), plain)


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> the nearest integers [N, K] int8, and a scale for each row [N] float32."""
    rows = weight.float()
    scale = rows.abs().amax(dim=1) / LARGEST
    scale = torch.where(scale > 0, scale, 1.0)
    return (rows / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def plain(layer: CompactLinear, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """torch's own layer with the same numbers, in a type."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(layer.dequantized().to(dtype))
    linear.bias = layer.bias  # type: ignore[assignment]
    return linear


def quantize_linears(module: nn.Module) -> None:
    """Replace all linear layers within by layers of int8, in place."""

    def quantize(layer: Any) -> CompactLinear:
        weight, scale = quantized(layer.weight.detach())
        return CompactLinear(weight, layer.bias, scale)

    _replace(_places(module, lambda layer: type(layer) is nn.Linear), quantize)


# Where a layer is: modules that have it, and its name in each.
Places = list[tuple[nn.Module, str]]


def _places(module: nn.Module, chosen: Callable[[nn.Module], bool]) -> list[Places]:
    """Those of each layer within that is chosen."""
    places: dict[nn.Module, Places] = {}
    for parent in module.modules():
        for name, child in parent._modules.items():
            if child is not None and chosen(child):
                places.setdefault(child, []).append((parent, name))
    return list(places.values())


def _replace(layers: list[Places], change: Callable[[Any], nn.Module]) -> None:
    """Put another layer in the place of each, one after the other: what it held is free then."""
    for places in layers:
        layer = change(getattr(*places[0]))
        for parent, name in places:
            setattr(parent, name, layer)


# ---- 16 bits -----------------------------------------------------------------------------------


@torch.no_grad()
def keep_in_16_bits(model: PreTrainedModel, *, head: bool) -> None:
    """Keep the weights of a model's linear layers in 16 bits, in place, where these hold all of
    them exactly: of a model in float32 on the CPU, those layers that a pass over a short text
    calls. Embeddings stay, and a head that was tied to one has weights of its own from then on. A
    model that does something else with a layer than to call it gets its layers back.

    Args:
        model: in eval mode.
        head: with its output layer, as of a language model; else only within its base model.
    """
    parameter = next(model.parameters())
    if parameter.dtype != torch.float32 or not isinstance(few_rows(parameter.device), FewRows):
        return
    linears = [layer for layer in model.modules() if type(layer) is nn.Linear]
    samples = [layer.weight.flatten()[:SAMPLE] for layer in linears]
    if not any(_holds(kind, sample) for sample in samples for kind in OF_16_BITS):
        return
    del linears, samples  # which would keep the weights in float32
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", 1)
    text = torch.arange(min(TRIED, vocabulary), device=parameter.device)[None]
    try:
        layers, before = _called(model, nn.Linear, text, head)
    except UnsupportedModelError:
        return  # who runs it next says what is wrong with it
    kind = _kind_of(layers)
    places = _places(model, layers.__contains__)
    del layers
    if kind is None:
        return
    _replace(places, lambda layer: CompactLinear(layer.weight.to(kind), layer.bias))
    try:
        rows, after = _called(model, CompactLinear, text, head)
        is_same = (after - before).norm() <= SAME * before.norm()
        if is_same and set(rows.values()) == {torch.float32}:
            return
    except UnsupportedModelError:
        pass
    _replace(places, plain)
    model.tie_weights()


def _called(
    model: PreTrainedModel, kind: type[nn.Module], text: Tensor, head: bool
) -> tuple[dict[Any, torch.dtype], Tensor]:
    """The layers of a kind that a pass over a text calls, with the type of the rows that they are
    given, and what the pass gives."""
    called: dict[Any, torch.dtype] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        called[layer] = inputs[0].dtype if inputs else torch.float32

    hooks = [x.register_forward_pre_hook(note) for x in model.modules() if type(x) is kind]
    try:
        return called, own_outputs(model, text, logits=head)
    finally:
        for hook in hooks:
            hook.remove()


def _kind_of(layers: Collection[nn.Linear]) -> torch.dtype | None:
    """The 16 bits that hold the weights of all these layers exactly."""
    for kind in OF_16_BITS if layers else ():
        if all(_holds(kind, layer.weight) for layer in layers):
            return kind
    return None


def _holds(kind: torch.dtype, weight: Tensor) -> bool:
    pieces = weight.detach().flatten().split(PIECE)
    return all(torch.equal(piece.to(kind).to(piece.dtype), piece) for piece in pieces)
