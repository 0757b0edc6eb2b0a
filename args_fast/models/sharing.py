"""Whether a model stands on the very weights of another, so that one copy can serve both."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from args_fast.models import compact
from args_fast.models.low_rank import LowRank

# Fields of a configuration that change nothing in the forward pass of a base model.
COSMETIC = re.compile(
    r"^_|^summary_|^output_|_token_id$|name_or_path|architectures|label|problem_type|dtype|drop"
    r"|transformers_version|use_cache|return_dict|tie_word|initializer_range|init_std"
    r"|task_specific_params"
)

Quantize = Callable[[nn.Module], None]


def difference(lm: Any, base: Any, *, biases: bool, quantize: Quantize | None) -> str | None:
    """What of a base model is not the language model's; None where every tensor is equal.

    Args:
        lm: the base model of the language model.
        base: the base model of the other.
        biases: the biases of its linear layers may differ.
        quantize: what the language model's linear layers have gone through, and the other's have
            not yet; None for nothing.
    """
    if type(base) is not type(lm):
        return f"it is a {type(base).__name__}, and the language model a {type(lm).__name__}"
    if fields := sorted(_differing_fields(lm.config, base.config)):
        return f"their configurations differ in {', '.join(fields[:3])}"
    others = dict(lm.named_modules())
    for name, module in base.named_modules():
        if name not in others:
            return f"the language model has no {name}"
        for tensor, why in _differing(others[name], module, biases, quantize):
            return f"{name}.{tensor} {why}"
    return None


def with_biases(terms: list[LowRank], lm: nn.Module, base: nn.Module) -> list[LowRank]:
    """The terms, with what the biases of a base model are above the language model's."""
    by_name = {term.name: term for term in terms}
    for name, layer in base.named_modules():
        if not isinstance(layer, (nn.Linear, Conv1D)) or layer.bias is None:
            continue
        ours: Any = lm.get_submodule(name).bias
        if torch.equal(ours, layer.bias):
            continue
        bias = layer.bias.detach().float() - ours.detach().float()
        term = by_name.get(name) or _nothing(name, layer)
        total = bias if term.bias is None else bias + term.bias.to(bias)
        by_name[name] = LowRank(name, term.a, term.b, total)
    return list(by_name.values())


def _nothing(name: str, layer: nn.Linear | Conv1D) -> LowRank:
    """The term of rank 0."""
    shape = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
    empty = layer.weight.detach().new_empty
    return LowRank(name, empty(0, shape[1]), empty(shape[0], 0))


def _differing_fields(ours: Any, theirs: Any) -> set[str]:
    ours, theirs = ours.to_dict(), theirs.to_dict()
    names = {name for name in ours | theirs if not COSMETIC.search(name)}
    return {name for name in names if ours.get(name) != theirs.get(name)}


def _differing(
    ours: nn.Module, theirs: nn.Module, biases: bool, quantize: Quantize | None
) -> Iterator[tuple[str, str]]:
    """The tensors of one module that are not the same, and why."""
    is_linear = isinstance(theirs, (nn.Linear, Conv1D))
    plain = type(getattr(theirs, "weight", None)) is nn.Parameter
    if quantize is not None and type(theirs) is nn.Linear and plain:
        holder = nn.Sequential(copy.deepcopy(theirs))
        quantize(holder)
        theirs = holder[0]
    elif type(ours) is not type(theirs):  # 16 bits are the same numbers
        ours, theirs = (
            compact.plain(layer) if compact.is_of_16_bits(layer) else layer
            for layer in (ours, theirs)
        )
    if type(ours) is not type(theirs):
        yield "", f"is a {type(theirs).__name__}, and the language model's a {type(ours).__name__}"
        return
    a, b = _tensors(ours), _tensors(theirs)
    for name in a | b:
        if name not in a or name not in b:
            yield name, "is there in one of them only"
        elif (why := _unequal(a[name], b[name])) and not (
            biases and is_linear and name == "bias" and a[name].shape == b[name].shape
        ):
            yield name, why


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own, those of a quantized weight one by one."""
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {f"{name}{part}": x for name, tensor in named for part, x in _plain(tensor)}


def _plain(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a tensor is made of, by torch's protocol for subclasses of it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield "", tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from ((f".{name}{part}", x) for part, x in _plain(getattr(tensor, name)))


def _unequal(ours: Tensor, theirs: Tensor) -> str | None:
    for trait in ("dtype", "device", "shape"):
        if getattr(ours, trait) != getattr(theirs, trait):
            return f"has the {trait} {getattr(theirs, trait)}, not {getattr(ours, trait)}"
    return None if torch.equal(ours, theirs) else "has other values"
