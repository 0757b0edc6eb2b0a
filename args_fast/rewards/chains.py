"""Judges that branch a decoder model over one stored prefix: k siblings, or k chains with closing
ids; along a draft, that many at each of its positions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from args_fast.errors import ConfigError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import GroupCache
from args_fast.models.branches import Branches, siblings_along
from args_fast.rewards.base import Candidates, Choice, Judge, Reading

if TYPE_CHECKING:
    from args_fast.rewards.adapter import Adapter
    from args_fast.rewards.classifier import Classifier

MAX_END_TOKENS = 16


class SiblingJudge(Judge):
    """k branches of the reward model over one prefix, at each of ``positions`` of a draft. With a
    linear head, choosing and committing are one op."""

    def __init__(
        self, reward: "Classifier", memory: BatchMemory, store: GroupCache, positions: int = 1
    ) -> None:
        super().__init__()
        self._reward = reward
        self._memory = memory
        self._group = store.group
        self._branches = _branches(memory, store, positions, 0)

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:
        if not resumed:
            lengths = [len(request.texts[self._group].ids) for request in requests]
            self._memory.send(self._branches.lengths, lengths, 0)

    def read(self, candidates: Candidates) -> None:
        # Before anything that takes long: a copy between devices waits for both.
        self._candidates = candidates.to(self._reward.device)
        self._hidden = self._reward.backbone.hidden(self._candidates.ids, None, self._branches)

    def rewards(self) -> Tensor:
        return self._to_lm(self._reward.head.rewards(self._hidden))

    def keep(self, branch: Tensor) -> None:
        self._branches.commit(branch.to(self._reward.device, non_blocking=True))

    def keep_rows(self, rows: Tensor, counts: Tensor) -> None:
        device = self._reward.device
        self._branches.commit_rows(rows.to(device), counts.to(device))

    def choose(self, candidates: Candidates, *, detailed: bool) -> Choice:
        head = self._reward.head.fused(self._hidden)
        if detailed or head is None:
            return super().choose(candidates, detailed=detailed)
        here = self._candidates
        chosen = self._branches.select_commit(
            self._hidden, *head, here.logprobs, here.w, here.temperature, here.noise
        )
        return Choice(*(self._to_lm(x) for x in chosen))

    def _to_lm(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._memory.device, non_blocking=True)


class JoinedJudge(SiblingJudge):
    """Siblings that can go through the language model's layers together with its own rows."""

    _reward: "Adapter"

    def read_with(self, candidates: Candidates, lm_rows: Branches) -> Tensor:
        self._candidates = candidates
        hidden, self._hidden = self._reward.adapted.hidden_with(
            candidates.ids, lm_rows.positions(), lm_rows, self._branches
        )
        return hidden


class ChainJudge(Judge):
    """k chains of a candidate and s closing ids; the head reads the last row of each chain, and the
    candidate's row alone is committed.

    A candidate that ends its request adds nothing: its chain is the closing ids alone, one row
    earlier. Its row then holds the first closing id, and what is committed after the end of a
    request is not read.
    """

    def __init__(
        self, reward: "Classifier", memory: BatchMemory, store: GroupCache, positions: int = 1
    ) -> None:
        super().__init__()
        self._reward = reward
        self._memory = memory
        self._group = store.group
        B, s, device = memory.B, reward.closings, reward.device
        self._branches = _branches(memory, store, positions, s)
        self._closing = memory.tensor(f"{store.name} closing", torch.int64, B, s, device=device)
        self._count = memory.tensor(f"{store.name} closings", torch.int64, B, 1, device=device)
        self._ends = memory.tensor(
            f"{store.name} ends", torch.int64, B, MAX_END_TOKENS, device=device
        )

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:
        if resumed:
            return
        send, s = self._memory.send, self._reward.closings
        send(self._branches.lengths, [len(r.texts[self._group].ids) for r in requests], 0)
        closings = [self._reward.rendering(request).closing for request in requests]
        send(self._closing, [(ids + [0] * s)[:s] for ids in closings], [0] * s)
        send(self._count, [[len(ids)] for ids in closings], [0])
        ends = [sorted(request.end_tokens) for request in requests]
        if max(map(len, ends)) > MAX_END_TOKENS:
            raise ConfigError(
                f"a request has {max(map(len, ends))} end tokens; with closing ids it can have "
                f"{MAX_END_TOKENS}"
            )
        rows = [(ids + [-1] * MAX_END_TOKENS)[:MAX_END_TOKENS] for ids in ends]
        send(self._ends, rows, [-1] * MAX_END_TOKENS)

    def read(self, candidates: Candidates) -> None:
        ids = candidates.ids.to(self._reward.device, non_blocking=True)  # [B, k]
        B, k = ids.shape
        ended = (ids[:, :, None] == self._ends[:, None, :]).any(2) & (self._count > 0)
        # [B, k, 1 + s]: the candidate and its closing ids, or the closing ids alone.
        closing = self._closing[:, None, :].expand(-1, k, -1)
        chain = torch.cat([ids[:, :, None], closing], dim=2)
        shifted = torch.cat([closing, closing[:, :, -1:]], dim=2)
        rows = torch.where(ended[:, :, None], shifted, chain)
        rows = rows.transpose(1, 2).reshape(B, -1)  # by depth, the candidates first
        hidden = self._reward.backbone.hidden(rows, None, self._branches)
        last = self._count.expand(-1, k) - ended.long()
        index = last * k + torch.arange(k, device=ids.device)
        hidden = hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))
        self._rewards = self._reward.head.rewards(hidden)

    def rewards(self) -> Tensor:
        return self._rewards.to(self._memory.device, non_blocking=True)

    def keep(self, branch: Tensor) -> None:
        self._branches.commit(branch.to(self._reward.device, non_blocking=True))

    def keep_rows(self, rows: Tensor, counts: Tensor) -> None:
        device = self._reward.device
        self._branches.commit_rows(rows.to(device), counts.to(device))


def _branches(memory: BatchMemory, store: GroupCache, positions: int, closings: int) -> Branches:
    """The rows of the candidates of a batch, at each of several positions of a draft."""
    name, cache, k = store.name, store.cache, memory.k
    if positions == 1 and not closings:
        return Branches.within(memory, name, cache, k, group=store.group)
    mask = siblings_along(positions, k, closings, cache.layout.device)
    name = name if positions == 1 else f"{name} draft"
    return Branches.within(memory, name, cache, mask.shape[0], group=store.group, mask=mask)
