"""Low-rank terms: what an adapter adds to the linear layers of a model whose weights it shares."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from args_fast.errors import UnsupportedModelError
from args_fast.models import compact
from args_fast.models.compact import CompactLinear
from args_fast.models.families.base import EVERY_ROW
from args_fast.ops.schemas import MATRICES, TERM


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to the output of one linear layer: (x · aᵀ) · bᵀ + bias.

    Attributes:
        name: of the layer, within the base model.
        a: [r, K].
        b: [N, r], with the adapter's scale in it.
        bias: [N], or None.
    """

    name: str
    a: Tensor
    b: Tensor
    bias: Tensor | None = None

    def like(self, tensor: Tensor) -> "LowRank":
        """The same, of a tensor's type and on its device."""
        to = partial(Tensor.to, dtype=tensor.dtype, device=tensor.device)
        return LowRank(
            self.name, to(self.a), to(self.b), None if self.bias is None else to(self.bias)
        )


class LowRankTerms:
    """The low-rank terms of a model, for passes through it.

    The model is not touched but within ``added``: elsewhere it is what it was.

    Args:
        terms: of its linear layers.
        base: the base model that the names are of.
    """

    def __init__(self, terms: Iterable[LowRank], base: nn.Module) -> None:
        like = next(p for p in base.parameters() if p.dtype.is_floating_point)
        self.by_layer: Mapping[nn.Module, LowRank] = {
            base.get_submodule(term.name): term.like(like) for term in terms
        }

    def of_matrices(
        self, layers: Iterable[Mapping[str, tuple[nn.Module, slice]]]
    ) -> list[Tensor] | None:
        """The terms as the op ``decoder_layers`` takes them.

        Args:
            layers: of each layer the module that has a matrix, and which of its rows, by MATRICES.

        Returns:
            TERM of each of MATRICES of each layer; None where a term is of another module.
        """
        empty = torch.empty(0, device="cpu")
        tensors, used = [], set()
        for matrices in layers:
            for name in MATRICES:
                module, rows = matrices.get(name, (None, EVERY_ROW))
                term = None if module is None else self.by_layer.get(module)
                if term is None:
                    tensors += [empty] * len(TERM)
                    continue
                used.add(module)
                bias = empty if term.bias is None else term.bias[rows].float().contiguous()
                tensors += [term.a.contiguous(), term.b[rows].float().T.contiguous(), bias]
        return tensors if len(used) == len(self.by_layer) else None

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the terms, by the layer's name and peft's."""
        for term in self.by_layer.values():
            parts = {"lora_A": term.a, "lora_B": term.b, "bias": term.bias}
            yield from ((f"{term.name}.{n}", x) for n, x in parts.items() if x is not None)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the terms."""
        return [tensor for _, tensor in self.named()]

    @contextmanager
    def added(self, *, second_half: bool = False) -> Iterator[None]:
        """Passes within add the terms: to all rows, or to those of the second half of the batch."""
        handles = [
            layer.register_forward_hook(partial(_add, term, second_half))
            for layer, term in self.by_layer.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add(
    term: LowRank, second_half: bool, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor
) -> Tensor:
    """A forward hook of a linear layer."""
    x = inputs[0].reshape(-1, inputs[0].shape[-1])
    out = output.reshape(-1, output.shape[-1])
    start = len(x) // 2 if second_half else 0
    if second_half and len(x) % 2:
        raise UnsupportedModelError(
            f"a linear layer ({type(layer).__name__}) is given {len(x)} rows of two equal halves"
        )
    added = linear(linear(x[start:], term.a), term.b)
    out[start:] += added if term.bias is None else added + term.bias
    return out.view(output.shape)


@torch.no_grad()
def merge(base: nn.Module, terms: Iterable[LowRank]) -> None:
    """Add the terms to the weights of the base model, in place."""
    dtype = next(base.parameters()).dtype
    compact.widen(base)  # as the sums have more bits, and the layers' op takes one type
    for term in terms:
        layer = base.get_submodule(term.name)
        if isinstance(layer, CompactLinear):  # of integers
            layer = compact.plain(layer, dtype)
            base.set_submodule(term.name, layer)
        weight: Any = layer.weight
        change = term.b.float() @ term.a.float()
        change = change.T if isinstance(layer, Conv1D) else change
        weight.copy_(weight.float() + change.to(weight.device))
        bias: Any = layer.bias
        if term.bias is not None:
            bias.copy_(bias.float() + term.bias.float().to(bias.device))
