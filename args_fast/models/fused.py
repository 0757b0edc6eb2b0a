"""The decoder layers of a model as one op (``args_fast.ops.decoder_layers``), instead of some
thirty ops a layer through its modules.

For the rows of a tail, on the CPU for most prompts too, and for models that
``args_fast.models.families`` knows in every detail. The weights are the model's own. Embeddings,
and whatever turns a position into numbers, are its own modules.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel

from args_fast.models.attention import AttentionOptions
from args_fast.models.branches import Branches
from args_fast.models.families import layers_of
from args_fast.models.families.base import Layers, Unknown, product
from args_fast.models.low_rank import LowRankTerms
from args_fast.ops.decoder_layers import (
    DecoderLayers,
    Embedding,
    InTriton,
    backend,
    decoder_layers,
    unsupported,
)
from args_fast.ops.schemas import LAYER_WEIGHTS, MATRICES, TERM

Fused = bool | Literal["auto"]  # the engine's option
CPU = torch.device("cpu")  # whatever torch's default device is
OF_LAYER = len(LAYER_WEIGHTS)
TERMS_OF_LAYER = len(MATRICES) * len(TERM)

# transformers leaves hooks of this module in a model that was asked for its hidden states; they do
# nothing but within such a call.
CAPTURING = "transformers.utils.output_capturing"

# Hooks on every module of the process; they run in modules only.
_GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)


class FusedLayers:
    """The forward pass of a model over the rows of a tail, by the op.

    Args:
        model: in eval mode.
        layers: what ``args_fast.models.families.layers_of`` found in it.
        low_rank: an adapter's terms, as the op takes them.

    Attributes:
        first_adapted: the first layer that an adapter adds terms to.
    """

    def __init__(
        self, model: PreTrainedModel, layers: Layers, low_rank: Sequence[Tensor] = ()
    ) -> None:
        self.first_adapted = _first_adapted(low_rank)
        self._model = model
        self._layers = layers
        self._low_rank = list(low_rank)
        holders = [(m._parameters, m._buffers) for m in layers.modules]
        self._slots = [slots for pair in holders for slots in pair]
        self._state: list[int] = []
        self._tensors: list[Tensor] = []  # kept, as ids are those of living objects
        self._weights: list[Tensor] = []
        self._parts: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
        self._has_views = True
        self._asked = self._looking = self._seen = 0  # see look_once
        self._device = next(model.parameters()).device
        self._ops: dict[str, DecoderLayers] = {}  # of each backend that was asked for
        called = set(_within(layers.called))
        self._called = [h for m in called for h in (m._forward_hooks, m._forward_pre_hooks)]
        watched = [module for module in model.modules() if module not in called]
        hooks = ((m._forward_hooks, m._forward_pre_hooks) for m in watched)
        self._hooks = [*_GLOBAL_HOOKS, *(hook for pair in hooks for hook in pair)]

    @property
    def applies(self) -> bool:
        """Whether the op can run and does what the modules would: no hook waits for the call of a
        module that is not called, and dropout is off."""
        if self._unchanged:
            return True
        self._looking = self._asked
        idle = not self._model.training and not any(map(_waiting, filter(None, self._hooks)))
        return idle and backend(self._device.type) is not None and self._has_weights()

    def _has_weights(self) -> bool:
        """Not where a caller has put in weights of another type."""
        try:
            return bool(self._current_weights())
        except Unknown:
            return False

    def look_once(self) -> None:
        """Look for changes of the model in the next pass, and not in those that follow. Whoever
        calls this calls it again whenever the model may have changed; where it was never called,
        every pass looks, at hundreds of modules."""
        self._asked += 1

    @property
    def _unchanged(self) -> bool:
        return self._asked > 0 and self._seen == self._asked

    def _op(self) -> DecoderLayers:
        """The op in the backend that runs here: one for this model alone, whatever else runs."""
        name = backend(self._device.type)
        assert name is not None  # applies
        if name not in self._ops:
            self._ops[name] = decoder_layers(self._device)
        return self._ops[name]

    @torch.no_grad()
    def hidden(self, ids: Tensor, branches: Branches) -> Tensor:
        """ids [B, N] -> the last hidden state [B, N, H]; the rows' keys and values are in
        ``branches`` afterwards."""
        in_triton = isinstance(self._op(), InTriton)
        embedding = self._embedding(ids, branches) if in_triton else None
        hidden, dtype = self._rows(ids, branches, embedding, in_triton)
        every = slice(0, self._count)
        self._run(hidden, branches, self._turns(branches), every, embedding=embedding)
        return self._projected(hidden, dtype)

    @torch.no_grad()
    def hidden_with(self, ids: Tensor, lm: Branches, adapted: Branches) -> tuple[Tensor, Tensor]:
        """ids [B, N] -> the last hidden states [B, N, H] without the adapter's terms and with
        them, in one pass; their keys and values are in ``lm`` and in ``adapted`` afterwards. Both
        have the same prefixes, whose pages have the same numbers in both caches.

        Below ``first_adapted`` both are the same, and so are their keys and values: the rows go
        through these layers once, over the language model's cache."""
        hidden, dtype = self._rows(ids, lm, None, own_type=False)
        first, turns = self.first_adapted, self._turns(lm)
        if first:
            self._run(hidden, lm, turns, slice(0, first))
            adapted.k[:first].copy_(lm.k[:first])
            adapted.v[:first].copy_(lm.v[:first])
        hidden = torch.cat([hidden, hidden])
        self._run(hidden, lm, turns, slice(first, self._count), adapted)
        states = self._projected(hidden, dtype)
        return states[: len(ids)], states[len(ids) :]

    @property
    def _count(self) -> int:
        return len(self._layers.scales)

    def _run(
        self,
        hidden: Tensor,
        branches: Branches,
        turns: tuple[Tensor | None, Tensor | None],
        part: slice,
        adapted: Branches | None = None,
        embedding: Embedding | None = None,
    ) -> None:
        """A part of the layers over hidden [B, N, H], or over as many rows again ([2 B, N, H]), of
        which the second half alone gets the terms, then; in place."""
        layers = self._layers
        at_end = part.stop == self._count
        weights, low_rank = self._tensors_of(part)
        self._op()(
            hidden,
            weights,
            *branches.keys_and_values(part),
            branches.page_table,
            branches.lengths,
            None if branches.is_prompt else branches.mask,
            *turns,
            layers.scales[part],
            layers.windows[part],
            layers.norm,
            layers.eps,
            layers.activation,
            layers.pre_norm,
            *(_final_norm(layers.final_norm) if at_end else (None, None)),
            low_rank,
            [] if adapted is None else adapted.keys_and_values(part),
            **({} if embedding is None else {"embedding": embedding}),
        )
        self._seen = self._looking

    def _tensors_of(self, part: slice) -> tuple[list[Tensor], list[Tensor]]:
        """The weights of some layers, and an adapter's terms there: the same lists each time, as
        long as the weights are the same."""
        weights, key = self._current_weights(), (part.start, part.stop)
        if key not in self._parts:
            terms = slice(part.start * TERMS_OF_LAYER, part.stop * TERMS_OF_LAYER)
            self._parts[key] = (
                weights[part.start * OF_LAYER : part.stop * OF_LAYER],
                self._low_rank[terms] if part.stop > self.first_adapted else [],
            )
        return self._parts[key]

    def _turns(self, branches: Branches) -> tuple[Tensor | None, Tensor | None]:
        """Cosines and sines of the rows' positions."""
        rotary = self._layers.rotary
        if rotary is None:
            return None, None
        # Of the type that is wanted.
        like = torch.empty(0, dtype=torch.float32, device=self._device)
        cos, sin = rotary(like, branches.positions())
        return cos.contiguous(), sin.contiguous()

    def _projected(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        hidden = hidden.to(dtype)
        project = self._layers.project
        return hidden if project is None else product(project, hidden)

    def _rows(
        self, ids: Tensor, branches: Branches, embedding: Embedding | None, own_type: bool
    ) -> tuple[Tensor, torch.dtype]:
        """The rows before the first layer as the op takes them, in their own type or in float32,
        and the type that they have in the modules. With an embedding there is nothing in them yet.
        """
        if embedding is not None:
            tokens = embedding[1]
            return tokens.new_empty(*ids.shape, tokens.shape[1]), tokens.dtype
        hidden = self._layers.embed(ids, branches.positions)
        # Triton's kernels take them as they are.
        rows = hidden if own_type else hidden.to(torch.float32)
        return rows.contiguous(), hidden.dtype

    def _embedding(self, ids: Tensor, branches: Branches) -> Embedding | None:
        """What the op makes the rows before the first layer of; None where modules make them, as
        where a hook waits for the call of one of them."""
        tables = self._layers.tables
        if tables is None or any(map(_waiting, self._called)):
            return None
        tokens, places, offset = tables
        if places is None:
            return ids, tokens.weight, None, None, 0
        return ids, tokens.weight, places.weight, branches.positions(torch.int32), offset

    @property
    def matrix(self) -> Tensor:
        """The first one of the layers: [out, in], of the type of all."""
        return self._current_weights()[LAYER_WEIGHTS.index("q")]

    @property
    def dtype(self) -> torch.dtype:
        """Of everything but the matrices, which may be compact."""
        return self._model.dtype

    @property
    def adapted_share(self) -> float:
        """The part of the layers from the first one on that an adapter adds terms to."""
        return 1 - self.first_adapted / self._count

    def _current_weights(self) -> list[Tensor]:
        """The op's weights, found again where a module has another parameter, or where one that is
        viewed lies elsewhere. The parameters themselves may move: the op asks where they are."""
        if self._unchanged:
            return self._weights
        tensors = [t for slots in self._slots for t in slots.values() if t is not None]
        state = list(map(id, tensors))
        if self._has_views:
            state += [tensor.data_ptr() for tensor in tensors]
        if state != self._state:
            self._weights, self._tensors, self._state = self._layers.weights(), tensors, state
            self._parts.clear()
            self._ops.pop("cpp", None)  # it holds the weights that were
            own = set(map(id, tensors))
            self._has_views = any(w.numel() and id(w) not in own for w in self._weights)
        return self._weights


def fused_layers(
    model: PreTrainedModel,
    options: Sequence[AttentionOptions],
    head_size: int,
    terms: LowRankTerms | None = None,
) -> FusedLayers | str:
    """The layers of a model as one op, or why they are not.

    Args:
        model: in eval mode.
        options: what each layer asks of its attention (``args_fast.models.probe``).
        head_size: elements of a head.
        terms: of an adapter, which are added.
    """
    layers = layers_of(model, options)
    if isinstance(layers, str):
        return layers
    low_rank = [] if terms is None else terms.of_matrices(layers.matrices)
    if low_rank is None:
        return "the adapter is on other layers than the op has"
    if reason := unsupported(layers.weights(), head_size, low_rank):
        return reason
    return FusedLayers(model, layers, low_rank)


def _first_adapted(low_rank: Sequence[Tensor]) -> int:
    """The layer of the first term; the last one where there is none."""
    places = (i // TERMS_OF_LAYER for i, tensor in enumerate(low_rank) if tensor.numel())
    return next(places, max(0, len(low_rank) // TERMS_OF_LAYER - 1))


def _final_norm(module: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias for the op, which takes a weight without elements for a norm without one."""
    if module is None:
        return None, None
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return torch.empty(0, device=CPU) if weight is None else weight, bias


def _waiting(hooks: Mapping[int, Any]) -> bool:
    """Whether one of the hooks of a module is there for its next call."""
    return any(getattr(hook, "__module__", None) != CAPTURING for hook in hooks.values())


def is_hooked(module: nn.Module) -> bool:
    """Whether something waits for the next call of this module."""
    hooks = *_GLOBAL_HOOKS, module._forward_hooks, module._forward_pre_hooks
    return any(map(_waiting, filter(None, hooks)))


def _within(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    return (inner for module in modules for inner in module.modules())
