"""The rows of a step through torch.compile: one graph per model and kind of shape."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.decorators import mark_unbacked, maybe_mark_dynamic
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from args_fast.errors import CompileError
from args_fast.models.attention import AttentionContext, AttentionOptions
from args_fast.models.branches import Branches

BACKEND: str | Callable = "inductor"  # tests replace it by a quick one

# Graphs per model at most. A handful is what shapes make; the rest is for what else a graph holds
# on to, such as which weights want gradients, where a model is trained between decodes.
GRAPHS = 64

Run = Callable[[Tensor, Tensor, AttentionContext], Tensor]


class Compiled:
    """A forward pass over the rows of a tail, as one graph.

    Which sequences are decoded together, how many, and how long their page tables are, changes
    all the time; so batch, rows and pages are sizes that a graph takes as they come, and a new
    tail is nothing new to it. Only a size of one has graphs of its own.

    Args:
        run: ids, positions [B, N] and their context -> what the model gives for them.
        name: of the model, for messages.
        mode: of torch.compile.
    """

    def __init__(self, run: Run, name: str, mode: str) -> None:
        def forward(ids: Tensor, positions: Tensor, tail: Branches) -> Tensor:
            rows = _Rows(tail)
            out = run(ids, positions, rows)
            for kept, of_layers in ((tail.k, rows.k), (tail.v, rows.v)):
                kept.copy_(torch.stack([of_layers[layer] for layer in range(len(of_layers))]))
            return out

        # Graphs are kept by code object, and two models would share that of a closure: each would
        # search, and use up, the other's.
        code = forward.__code__
        own = FunctionType(code.replace(), globals(), code.co_name, None, forward.__closure__)
        self._name = name
        self._forward: Any = torch.compile(own, fullgraph=True, mode=mode, backend=BACKEND)

    def __call__(self, ids: Tensor, positions: Tensor, tail: Branches) -> Tensor:
        for tensor, dims in (
            (ids, (0, 1)),
            (positions, (0, 1)),
            (tail.k, (1, 2)),
            (tail.v, (1, 2)),
            (tail.mask, (0, 1)),
            (tail.lengths, (0,)),
            (tail.page_table, (0,)),
            (tail.cache.k_pages, (1,)),
            (tail.cache.v_pages, (1,)),
        ):
            maybe_mark_dynamic(tensor, dims)
        mark_unbacked(tail.page_table, 1)  # of a size that only the ops look at, one included
        try:
            with torch._dynamo.config.patch(recompile_limit=GRAPHS):
                return self._forward(ids, positions, tail)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise CompileError(
                f"torch.compile cannot make one graph of {self._name} ({_reason(error)}); with "
                "torch_compile=False, the default, it runs as it is."
            ) from error


def _reason(error: Exception) -> str:
    """What torch says is wrong, in one line: its first line names the kind of problem, and two of
    the many others say what and where."""
    cause = getattr(error, "inner_exception", error)
    first, *others = [line.strip() for line in str(cause).strip().splitlines()]
    explained = [line for line in others if line.startswith("Explanation: ")]
    places = [line for line in others if line.startswith('File "')]
    return ". ".join([f"{type(cause).__name__}: {first}", *explained[:1], *places[-1:]])


class _Rows:
    """A tail's rows within a graph, to be stored all at once at its end. In a graph nothing changes
    in place: if each layer stored its own, as a tail does, it would be a change of all layers."""

    def __init__(self, tail: Branches) -> None:
        self.tail = tail
        # By layer. Not lists: once two models have different numbers of layers, torch 2.11 does not
        # take a layer's number for a constant, and cannot index a list with it.
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        self.k[layer] = key.transpose(1, 2).contiguous()
        self.v[layer] = value.transpose(1, 2).contiguous()
        return self.tail.answer(layer, query, self.k[layer], self.v[layer], options)
