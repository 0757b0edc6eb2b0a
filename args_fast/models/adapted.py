"""A reward model that has no layers of its own: the language model's, with low-rank terms added."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from args_fast.errors import UnsupportedModelError
from args_fast.kvcache.storage import PagedCache
from args_fast.kvcache.transfer import send
from args_fast.models import fused_prefill
from args_fast.models.attention import AttentionContext, AttentionOptions, driven
from args_fast.models.backbone import Backbone, hidden_states
from args_fast.models.branches import Branches
from args_fast.models.fused import Fused, FusedLayers, fused_layers
from args_fast.models.low_rank import LowRankTerms
from args_fast.models.prefill import Prefill
from args_fast.models.proof import TOLERANCE


class AdaptedBackbone(Backbone):
    """A model on the language model's layers, whose rows get the terms of an adapter.

    Its rows go through the layers by themselves, or, in ``hidden_with`` and ``prefill_with``, in
    one pass with the language model's: then each weight is read once for both.

    Args:
        model: a head, and the language model's own base model.
        terms: of the linear layers of that.
        fused: as for ``Backbone``.
    """

    def __init__(
        self, model: PreTrainedModel, terms: LowRankTerms, *, fused: Fused = "auto"
    ) -> None:
        super().__init__(model, "reward model", fused=fused)
        self.terms = terms

    @cached_property
    def _layers(self) -> FusedLayers | str:
        return fused_layers(self.model, self._options, self.layout.head_size, self.terms)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from super().named_weights()
        yield from self.terms.named()

    def compile(self, mode: str) -> None:
        """Passes stay as they are: a compiled one would hold on to the terms, or do without."""
        self.drop_fused_layers()

    def own_forward(self) -> AbstractContextManager:
        return self.terms.added()

    def hidden(self, ids: Tensor, positions: Tensor | None, context: AttentionContext) -> Tensor:
        if isinstance(context, Branches) and self.fused_layers(ids.numel()):
            return super().hidden(ids, positions, context)
        with self.terms.added():
            return super().hidden(ids, positions, context)

    @property
    def attention_per_token(self) -> float:
        """What a token of the prefix adds to a row's multiplications, as a part of those with the
        weights: a key and a value for each query head."""
        base: Any = self.model.base_model
        tables = (m.weight for m in base.modules() if isinstance(m, nn.Embedding))
        weights = sum(x.numel() for x in chain(base.parameters(), base.buffers()))
        weights -= sum(table.numel() for table in tables)
        heads = base.config.get_text_config().num_attention_heads
        return 2 * self.layout.layers * heads * self.layout.head_size / weights

    # ---- one pass for both ---------------------------------------------------------------------

    def hidden_with(
        self, ids: Tensor, positions: Tensor, lm: AttentionContext, own: AttentionContext
    ) -> tuple[Tensor, Tensor]:
        """ids, positions [B, N] -> the language model's last hidden state of these rows and this
        model's [B, N, H], in one pass; their keys and values go to contexts of their own."""
        layers = self.fused_layers(ids.numel())  # as many again are the language model's
        if layers is not None and isinstance(lm, Branches) and isinstance(own, Branches):
            return layers.hidden_with(ids, lm, own)
        ids, positions = (x.expand(2, -1, -1).flatten(0, 1) for x in (ids, positions))
        with self.terms.added(second_half=True), driven(self.model), self._linear:
            states = hidden_states(self.model, ids, positions, Halves(lm, own))
        return states[: len(states) // 2], states[len(states) // 2 :]

    def prefill_with(
        self, lm: PagedCache, own: PagedCache, ids: list[int], pages: list[int], start: int
    ) -> None:
        """Store the K/V of ids after the ``start`` that are stored, of both models."""
        if (layers := self.fused_layers()) and fused_prefill.takes(layers, len(ids)):
            return fused_prefill.prefill(layers, [lm, own], ids, pages, start)
        for offset, piece in self.pieces(ids, start):
            rows = send([piece], torch.int64, self.device)
            contexts = [
                Prefill(cache, pages, start + offset, len(piece), self._flash)
                for cache in (lm, own)
            ]
            self.hidden_with(rows, contexts[0].position[None], *contexts)


class Halves:
    """The first half of a batch's rows attends in one context, the second in another (an
    AttentionContext)."""

    def __init__(self, lm: AttentionContext, adapted: AttentionContext) -> None:
        self._contexts = lm, adapted

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        halves = zip(self._contexts, *(x.chunk(2) for x in (query, key, value)), strict=True)
        return torch.cat([context.attend(layer, *half, options) for context, *half in halves])


@torch.inference_mode()
def one_pass_agrees(lm: Backbone, adapted: AdaptedBackbone) -> bool:
    """Whether one pass for the language model and an adapted one gives what two passes give: not
    where a layer mixes the rows of a batch. The logits must be the output layer's alone. Shown for
    the modules, and for the fused layers where these run."""
    if not lm.has_plain_head:
        return False
    try:
        if not _agree(lm, adapted):
            return False
        if adapted.fused_layers() is None:
            return True
        with lm.through_modules(), adapted.through_modules():
            return _agree(lm, adapted)
    except UnsupportedModelError:
        return False


def _agree(lm: Backbone, adapted: AdaptedBackbone) -> bool:
    one, two = (_tail_after_prompt(lm, adapted, joined=joined) for joined in (True, False))
    allowed = TOLERANCE[lm.layout.dtype]
    return all((a - b).norm() <= allowed * b.norm() for a, b in zip(one, two, strict=True))


def _tail_after_prompt(lm: Backbone, adapted: AdaptedBackbone, joined: bool) -> list[Tensor]:
    """Both models' hidden states of a few rows after a short prompt."""
    layout, ids = lm.layout, [x % lm.vocabulary for x in range(1, 7)]
    table = torch.tensor([[1]], dtype=torch.int32, device=lm.device)
    lengths = torch.tensor([3], dtype=torch.int32, device=lm.device)
    shape = layout.layers, 1, 3, layout.kv_heads, layout.head_size
    tails = []
    for _ in range(2):
        k, v = (torch.zeros(shape, dtype=layout.dtype, device=lm.device) for _ in range(2))
        tails.append(Branches(PagedCache(layout, 1), table, lengths, k, v))
    rows = torch.tensor([ids[3:]], device=lm.device)
    if joined:
        adapted.prefill_with(tails[0].cache, tails[1].cache, ids[:3], [1], 0)
        states = list(adapted.hidden_with(rows, tails[0].positions(), *tails))
    else:
        states = []
        for backbone, tail in zip((lm, adapted), tails, strict=True):
            backbone.prefill(tail.cache, ids[:3], [1])
            states.append(backbone.hidden(rows, tail.positions(), tail).clone())
    return [state.float() for state in states]
