"""Decoding without a reward: a judge that has no opinion."""

import torch
from torch import Tensor

from args_fast.rewards.base import Candidates, Judge


class NoOpinion(Judge):
    """Leaves the choice to the language model: w = 0, or k = 1."""

    def read(self, candidates: Candidates) -> None:
        self._like = candidates.logprobs

    def rewards(self) -> Tensor:
        return torch.full_like(self._like, torch.nan)

    def select(self, rewards: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = candidates.logprobs
        if logprobs.shape[1] == 1:  # nothing to choose
            branch, score = torch.zeros_like(candidates.ids[:, 0]), logprobs[:, 0]
        else:
            noisy = logprobs / candidates.temperature[:, None] + candidates.noise
            branch = torch.argmax(noisy, dim=1)
            score = logprobs.gather(1, branch[:, None])[:, 0]
        # w * r is nothing at w = 0, and not known at k = 1 with any other w.
        score = torch.where(candidates.w == 0, score, torch.nan)
        return branch, rewards[:, 0], score
