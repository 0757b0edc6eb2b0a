"""Propose along a draft: the language model reads the last token and the draft as one chain."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from args_fast.engine.narrowing import Narrowing
from args_fast.engine.request import Request
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import PagedCache
from args_fast.kvcache.transfer import send
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches, chain, siblings_along
from args_fast.rewards.base import LM_GROUP


@dataclass(frozen=True)
class Proposal:
    """The candidates at the n positions that some request reaches along its draft.

    Attributes:
        ids, logprobs, noise: [B, n, k], as in ``Candidates``.
        kept: [B, n, k] bool, as there; None where all are kept.
        drafts: [B, n - 1] i64, the draft at each position but the last.
        reached: [B, n] bool, whether the drafts before a position are all among the candidates.
        order: [B, n, k] i64, the candidates with the drafted one first. It and the first change
            places, so the same order leads back.
    """

    ids: Tensor
    logprobs: Tensor
    noise: Tensor
    kept: Tensor | None
    drafts: Tensor
    reached: Tensor
    order: Tensor

    def at(self, branch: Tensor, values: Tensor) -> Tensor:
        """values [B, n, k] of the candidates branch [B, n]."""
        return values.gather(2, branch[:, :, None])[:, :, 0]


class DraftChain:
    """The language model's rows along drafts of one length.

    Args:
        lm, cache: the language model and its K/V.
        memory: of the batch.
        narrowing: which of the k most likely tokens are candidates.
        drafted: tokens of a draft.

    Attributes:
        errors: of logits processors, by row.
    """

    def __init__(
        self,
        lm: Backbone,
        cache: PagedCache,
        memory: BatchMemory,
        narrowing: Narrowing,
        drafted: int,
    ) -> None:
        self.errors: dict[int, Exception] = {}
        self._lm = lm
        self._cache = cache
        self._memory = memory
        self._narrowing = narrowing
        rows = drafted + 1
        mask = chain(rows, lm.device)
        self._rows = Branches.within(memory, "lm chain", cache, rows, group=LM_GROUP, mask=mask)

    def propose(
        self, requests: Sequence[Request], drafts: Sequence[list[int]], noise: Tensor
    ) -> Proposal:
        """Read the last token of each request and its draft; noise [B, drafted + 1, k]."""
        self._memory.send(self._rows.lengths, [len(r.ids) - 1 for r in requests], 0)
        self._narrowing.load(requests)
        texts = [[r.ids[-1], *draft] for r, draft in zip(requests, drafts, strict=True)]
        ids = send(texts, torch.int64, self._lm.device)
        logits = self._lm.logits(ids, self._rows.positions(), self._rows)
        # The last token is part of the text. The draft is stored after it: how much of that is text
        # is for the next step's lengths to say.
        self._rows.commit_rows(
            torch.arange(ids.shape[1], device=ids.device).expand_as(ids), torch.ones_like(ids[:, 0])
        )
        logits, reached = self._processed(logits, requests, drafts)
        steps = [self._candidates(logits[:, i], noise[:, i]) for i in range(ids.shape[1])]
        return self._cut(
            ids[:, 1:], reached, *(torch.stack(x, 1) for x in zip(*steps, strict=True))
        )

    def read_ahead(self, ids: Tensor, positions: int) -> Tensor:
        """The last hidden state [B, n * k, H] of the candidates ids [B, n * k] of n positions."""
        k = ids.shape[1] // positions
        mask = siblings_along(positions, k, 0, self._lm.device)
        lengths, name, rows = self._rows.lengths, "lm draft candidates", len(mask)
        tail = Branches.within(
            self._memory, name, self._cache, rows, group=LM_GROUP, lengths=lengths, mask=mask
        )
        if self._lm.has_plain_head:
            return self._lm.hidden(ids, tail.positions(), tail)
        return self._lm.hidden_and_logits(ids, tail.positions(), tail)[0]

    def _candidates(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """logits [B, V] of a position -> ids, logprobs, noise and those that are kept [B, k]."""
        logprobs, ids = self._narrowing.top_k(logits.contiguous(), self._memory.k)
        kept = torch.ones_like(ids, dtype=torch.bool)
        if self._narrowing.drops:
            logprobs, ids, noise, kept = self._narrowing.replace_dropped(logprobs, ids, noise)
        return ids, logprobs, noise, kept

    def _cut(
        self,
        drafts: Tensor,
        reached: Tensor,
        ids: Tensor,
        logprobs: Tensor,
        noise: Tensor,
        kept: Tensor,
    ) -> Proposal:
        """Leave out the positions that no request reaches."""
        same = ids[:, :-1] == drafts[:, :, None]
        reached[:, 1:] &= same.any(2).cumprod(1).bool()
        n = int(reached.sum(1).max())
        place = pad(same.int().argmax(2), (0, 1))[:, :n, None]
        order = torch.arange(ids.shape[2], device=ids.device).expand(ids[:, :n].shape).clone()
        order.scatter_(2, place, 0)[:, :, :1] = place
        ids, logprobs, noise, kept, reached = (
            x[:, :n].contiguous() for x in (ids, logprobs, noise, kept, reached)
        )
        known = kept if self._narrowing.drops else None
        return Proposal(ids, logprobs, noise, known, drafts[:, : n - 1], reached, order)

    def _processed(
        self, logits: Tensor, requests: Sequence[Request], drafts: Sequence[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """logits [B, n, V] after the logits processors, and the positions [B, n] that have any.
        What one raises is its request's error only where the text has come so far."""
        reached = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        if all(request.process_logits is None for request in requests):
            return logits, reached
        logits = logits.float().clone()
        for row, (request, draft) in enumerate(zip(requests, drafts, strict=True)):
            if (process := request.process_logits) is None:
                continue
            for i in range(logits.shape[1]):
                try:
                    logits[row, i] = process([*request.ids, *draft[:i]], logits[row, i])
                except Exception as error:
                    reached[row, max(1, i) :] = False
                    if i == 0:
                        self.errors[row] = error
                    break
        return logits, reached
