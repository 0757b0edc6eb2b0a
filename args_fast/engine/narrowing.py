"""Which of the k most likely tokens are candidates: fewer than k, top_p, min_p, and ids that mean
nothing to a reward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from args_fast import ops
from args_fast.engine.request import Request
from args_fast.kvcache.memory import BatchMemory


class Narrowing:
    """Drops candidates by giving them the logprob -inf.

    Args:
        memory: of the batch.
        mixed: whether some requests have fewer than k candidates.
        by_probability: whether some requests have top_p or min_p.
        known: [V] bool, the ids that may be candidates; None for all.
    """

    def __init__(
        self, memory: BatchMemory, *, mixed: bool, by_probability: bool, known: Tensor | None
    ) -> None:
        B, k = memory.B, memory.k
        self.drops = by_probability or known is not None
        self._memory = memory
        self._known = known
        self._index = memory.tensor("index", torch.int64, B, k) if mixed else None
        self._top_p = memory.tensor("top_p", torch.float32, B, 1) if by_probability else None
        self._min_p = memory.tensor("min_p", torch.float32, B, 1) if by_probability else None

    def load(self, requests: Sequence[Request]) -> None:
        """The rows of the batch are these requests."""
        send = self._memory.send
        if self._index is not None:
            # At an index that a request does not have stands its first candidate again: it gives
            # the same reward, so no fault of its own, and its noise keeps it from being chosen.
            k = self._memory.k
            index = [[j if j < r.k else 0 for j in range(k)] for r in requests]
            send(self._index, index, [0] * k)
        if self._top_p is not None and self._min_p is not None:
            # Probabilities that rounding makes add up to more than 1 must not drop anything.
            top_p = [[2.0 if r.config.top_p in (None, 1) else r.config.top_p] for r in requests]
            send(self._top_p, top_p, [2.0])
            send(self._min_p, [[r.config.min_p or 0.0] for r in requests], [0.0])

    def top_k(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """logits [B, V] -> logprobs [B, k] f32, -inf for a dropped candidate, and ids [B, k]."""
        if self._known is None:
            logprobs, ids = ops.topk_logprobs(logits, k)
        else:
            logits = logits.float()
            possible = logits.masked_fill(~self._known, -torch.inf)
            logprobs, ids = ops.topk_logprobs(possible, k)
            # log p keeps the normaliser of the whole vocabulary.
            logprobs = logprobs + (possible.logsumexp(1) - logits.logsumexp(1))[:, None]
        if self._top_p is not None and self._min_p is not None:
            probabilities = logprobs.exp()
            before = probabilities.cumsum(1) - probabilities
            kept = (before < self._top_p) & (probabilities >= self._min_p * probabilities[:, :1])
            kept[:, 0] = True
            logprobs = logprobs.masked_fill(~kept, -torch.inf)
        if self._index is not None:
            logprobs, ids = logprobs.gather(1, self._index), ids.gather(1, self._index)
        return logprobs, ids

    @staticmethod
    def replace_dropped(
        logprobs: Tensor, ids: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """logprobs, ids and noise [B, k] with the first candidate in place of each dropped one, and
        the mask of those that are kept."""
        kept = logprobs != -torch.inf  # NaN, which marks a fault, is kept
        kept[:, 0] = True
        return (
            torch.where(kept, logprobs, logprobs[:, :1]),
            torch.where(kept, ids, ids[:, :1]),
            noise.masked_fill(~kept, -torch.inf),
            kept,
        )
