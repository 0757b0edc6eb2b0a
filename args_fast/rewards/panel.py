"""The rewards of one engine by name, and the judges that they form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import GroupCache, PagedCache
from args_fast.rewards.base import LM_GROUP, Candidates, Judge, Reading, Reward
from args_fast.rewards.skipping import SkippingJudge
from args_fast.rewards.unguided import NoOpinion


@dataclass(frozen=True)
class Skipping:
    """The key of requests that skip the reward in some steps."""

    names: str | tuple[str, ...]


# Requests with one key are judged together: a name alone where that reward counts with weight 1,
# the names where several do or with other weights, nothing for unguided decoding.
Key = str | tuple[str, ...] | Skipping


class Panel:
    """Rewards by name, and where the K/V of each is.

    Args:
        rewards: by name. Those that read the language model's ids share its cache group; each of
            the others that has a K/V cache gets a group of its own.

    Attributes:
        groups: the cache group of each reward that has a K/V cache, by name.
        group_count: how many groups there are, the language model's included.
        stores: the caches, by name, once they are allocated.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards = dict(rewards)
        self.group_count = 1
        self.groups: dict[str, int] = {}
        self.stores: dict[str, GroupCache] = {}
        self._known: dict[Key, Tensor | None] = {}
        self._home = torch.device("cpu")
        self._roots: dict[frozenset[str], int] = {}
        for name, reward in self.rewards.items():
            if reward.layout is None:
                continue
            self.groups[name] = self.group_count if reward.own_ids else LM_GROUP
            self.group_count += reward.own_ids

    def allocate(self, pages: int, device: torch.device) -> None:
        """Allocate the K/V caches, of this many pages each.

        Args:
            pages: of each cache.
            device: the language model's.
        """
        self._home = device
        for name, group in self.groups.items():
            layout = self.rewards[name].layout
            assert layout is not None
            self.stores[name] = GroupCache(name, group, PagedCache(layout, pages))

    def rewards_of(self, request: Reading) -> list[Reward]:
        """The rewards that guide a request."""
        return [self.rewards[name] for name in request.weights]

    def rewards_along(
        self, request: Reading, continuation: Sequence[int], *, at_end: bool
    ) -> list[float]:
        """The request's reward after every token of a continuation, or after the last one alone;
        without a cache."""
        total = [0.0] * (1 if at_end else len(continuation))
        for name, weight in request.weights.items():
            reward = self.rewards[name]
            if at_end:
                along = [reward.reward_of(request, continuation)]
            else:
                along = reward.rewards_along(request, continuation)
            total = [before + weight * r for before, r in zip(total, along, strict=True)]
        return total

    def root(self, request: Reading, group: int) -> int:
        """The number of a request's empty prefix in a cache group: pages of the language model's
        group hold the K/V of the rewards that read them too, so they are shared only with requests
        of the same rewards."""
        if group != LM_GROUP:
            return -1
        names = frozenset(name for name in request.weights if self.groups.get(name) == LM_GROUP)
        return self._roots.setdefault(names, -1 - len(self._roots))

    def key(self, request: Reading) -> Key:
        """Which requests a request is judged with."""
        key: str | tuple[str, ...] = tuple(sorted(request.weights))
        if len(key) == 1 and request.weights[key[0]] == 1:
            key = key[0]
        return Skipping(key) if request.skips and key else key

    def reported(self, key: Key) -> tuple[str, ...]:
        """The rewards whose raw values are reported: where their sum is not simply one of them."""
        names = key.names if isinstance(key, Skipping) else key
        return () if isinstance(names, str) else names

    def asks_host(self, key: Key) -> bool:
        """Whether the host has a say in every step."""
        return isinstance(key, Skipping) or any(reward.on_host for reward in self.named(key))

    def joins(self, key: Key) -> bool:
        """Whether the judge of a key can share the language model's pass: that of one reward."""
        return isinstance(key, str) and bool(key) and self.rewards[key].joins

    def named(self, key: Key) -> list[Reward]:
        """The rewards that a key stands for."""
        return [self.rewards[name] for name in _names(key)]

    def known_ids(self, key: Key) -> Tensor | None:
        """[V] bool, the ids that mean something to every reward of a key; None for all."""
        if key not in self._known:
            masks = [mask for r in self.named(key) if (mask := r.known_ids()) is not None]
            self._known[key] = torch.stack(masks).all(0).to(self._home) if masks else None
        return self._known[key]

    def count_unknown_ids(self) -> int:
        """How many of the language model's ids mean nothing to one of the rewards."""
        masks = [mask for r in self.rewards.values() if (mask := r.known_ids()) is not None]
        return int((~torch.stack(masks).all(0)).sum()) if masks else 0

    def judge(self, key: Key, memory: BatchMemory) -> Judge:
        """The judge of a key's requests, for batches of the memory's present shape."""
        if not key:
            return NoOpinion()
        names = _names(key)
        judge = self._together(
            key, [self.rewards[n].judge(memory, self.stores.get(n)) for n in names], memory
        )
        if not isinstance(key, Skipping):
            return judge
        stores = {name: self.stores[name] for name in names if name in self.stores}
        return SkippingJudge(judge, self.rewards, stores, memory, len(self.reported(key)))

    def draft_judge(self, key: Key, memory: BatchMemory, positions: int) -> Judge:
        """The judge of drafts of a key's requests, of k candidates at each of several positions."""
        if not key:
            return NoOpinion()
        judges = [
            self.rewards[name].draft_judge(memory, self.stores.get(name), positions)
            for name in _names(key)
        ]
        return self._together(key, judges, memory)

    def _together(self, key: Key, judges: list[Judge], memory: BatchMemory) -> Judge:
        return WeightedJudges(_names(key), judges, memory) if self.reported(key) else judges[0]


def _names(key: Key) -> tuple[str, ...]:
    names = key.names if isinstance(key, Skipping) else key
    return (names,) if isinstance(names, str) else names


class WeightedJudges(Judge):
    """r = the sum of weight * r_i, with weights of each request's own."""

    def __init__(self, names: tuple[str, ...], judges: list[Judge], memory: BatchMemory) -> None:
        super().__init__()
        self.names = names
        self._judges = judges
        self._memory = memory
        self._weights = memory.tensor("weights", torch.float32, memory.B, len(names))

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:
        if not resumed:
            rows = [[request.weights[name] for name in self.names] for request in requests]
            self._memory.send(self._weights, rows, [0.0] * len(self.names))
        for judge in self._judges:
            judge.load(requests, resumed=resumed)

    def read(self, candidates: Candidates) -> None:
        for judge in self._judges:
            judge.read(candidates)
        self.errors = {row: e for judge in self._judges for row, e in judge.errors.items()}

    def rewards(self) -> Tensor:
        self._parts = torch.stack([judge.rewards() for judge in self._judges], dim=2)  # [B, k, n]
        return (self._parts * self._weights[:, None, :]).sum(2)

    def keep(self, branch: Tensor) -> None:
        for judge in self._judges:
            judge.keep(branch)

    def keep_rows(self, rows: Tensor, counts: Tensor) -> None:
        for judge in self._judges:
            judge.keep_rows(rows, counts)

    def parts(self) -> Tensor:
        return self._parts
