"""Steps without the reward: ``DecodingConfig.every`` and ``certain``. They are not ARGS.

A request whose reward is skipped takes the token that the language model prefers (or draws). The
reward's K/V lacks that token until a step asks for the reward again; then it is filled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import GroupCache
from args_fast.rewards.base import Candidates, Choice, Judge, Reading, Reward
from args_fast.rewards.unguided import NoOpinion


class SkippingJudge(Judge):
    """A judge that is consulted only in the steps that each request wants.

    Which steps those are depends on nothing but the request, so it gets the same tokens alone and
    in a batch. Where every row skips, the reward is not run at all; a row that skips while another
    does not shows it the token that is chosen anyway.

    Args:
        judge: the one consulted.
        rewards, stores: by name, those that it consults and where their K/V is.
        memory: of the batch.
        reported: how many raw values it reports for each token.
    """

    def __init__(
        self,
        judge: Judge,
        rewards: Mapping[str, Reward],
        stores: Mapping[str, GroupCache],
        memory: BatchMemory,
        reported: int,
    ) -> None:
        super().__init__()
        self._judge = judge
        self._rewards = rewards
        self._stores = stores
        self._memory = memory
        self._reported = reported
        self._unguided = NoOpinion()

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:
        self._requests = list(requests)
        # After a step that skipped, the device's lengths are those before it.
        lagging = any(request.lag for request in requests)
        self._judge.load(requests, resumed=resumed and not lagging)

    def read(self, candidates: Candidates) -> None:
        self.errors = {}
        self._unguided.read(candidates)
        self._plain = self._unguided.choose(candidates, detailed=False)
        likeliest = candidates.logprobs[:, 0].exp().tolist()
        pairs = zip(self._requests, likeliest, strict=False)
        skips = [request.skips_reward(p) for request, p in pairs]
        self._is_idle = all(skips)
        if self._is_idle:
            return
        for request in self._requests:
            self._catch_up(request)
        skips += [False] * (self._memory.B - len(skips))
        self._skips = torch.tensor(skips, device=candidates.ids.device)
        chosen = candidates.ids.gather(1, self._plain.branch[:, None])
        ids = torch.where(self._skips[:, None], chosen, candidates.ids)
        self._shown = replace(candidates, ids=ids)
        self._judge.read(self._shown)
        self.errors = {row: e for row, e in self._judge.errors.items() if not skips[row]}

    def rewards(self) -> Tensor:
        if self._is_idle:
            return self._unguided.rewards()
        return self._judge.rewards().masked_fill(self._skips[:, None], torch.nan)

    def choose(self, candidates: Candidates, *, detailed: bool) -> Choice:
        plain = self._plain
        score = candidates.logprobs.gather(1, plain.branch[:, None])[:, 0]
        unknown = torch.full_like(score, torch.nan)
        if self._is_idle:
            for request in self._requests:
                request.lag += 1
            rewards = self._unguided.rewards() if detailed else None
            by_name = unknown[:, None].expand(-1, self._reported) if self._reported else None
            return Choice(plain.branch, unknown, score, rewards, by_name)
        choice = self._judge.choose(self._shown, detailed=detailed)
        skips = self._skips

        def hide(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.masked_fill(skips[:, None], torch.nan)

        return Choice(
            torch.where(skips, plain.branch, choice.branch),
            torch.where(skips, unknown, choice.reward),
            torch.where(skips, score, choice.score),
            hide(choice.rewards),
            hide(choice.by_name),
        )

    def _catch_up(self, request: Reading) -> None:
        """Store the K/V of the tokens that were chosen without the reward."""
        if request.lag == 0:
            return
        for name, store in self._stores.items():
            text, reward = request.texts[store.group], self._rewards[name]
            start = len(text.ids) - request.lag - reward.pending
            reward.fill(store, text, start, len(text.ids))
        request.lag = 0
