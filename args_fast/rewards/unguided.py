"""Decoding without a reward: a judge that has no opinion."""

import torch
from torch import Tensor

from args_fast.rewards.base import Candidates, Judge


class NoOpinion(Judge):
    """Leaves the choice to the language model: w = 0, or k = 1. With one candidate a step computes
    nothing here: what it gives is made once."""

    def __init__(self) -> None:
        super().__init__()
        self._rewards = torch.empty(0)
        self._only = torch.empty(0, dtype=torch.int64)

    def read(self, candidates: Candidates) -> None:
        if self._rewards.shape != candidates.logprobs.shape:
            self._rewards = torch.full_like(candidates.logprobs, torch.nan)

    def rewards(self) -> Tensor:
        return self._rewards

    def select(self, rewards: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor]:
        """The score is log p. At k = 1 and w != 0 it is not known, which the host says."""
        logprobs = candidates.logprobs
        if logprobs.shape[1] > 1:
            noisy = logprobs / candidates.temperature[:, None] + candidates.noise
            branch = torch.argmax(noisy, dim=1)
            return branch, rewards[:, 0], logprobs.gather(1, branch[:, None])[:, 0]
        if self._only.shape != logprobs.shape[:1]:
            self._only = torch.zeros_like(candidates.ids[:, 0])
        return self._only, rewards[:, 0], logprobs[:, 0]
