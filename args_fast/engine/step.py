"""One step of ARGS for a batch of sequences: everything from the last token to the next one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from args_fast import ops
from args_fast.engine.backbone import Backbone
from args_fast.engine.tail import Tail
from args_fast.rewards.classifier import BranchedClassifier


@dataclass
class Batch:
    """The device's side of B sequences that are decoded together. Nothing in it grows.

    Attributes:
        token: [B, 1] i64, the last token, which the language model has not seen yet.
        lm: the language model's tail of one row.
        rm: the reward model's tail of k rows; None where the choice does not depend on it.
        w, temperature: [B] f32; temperature 1 with noise 0 is the argmax.
        noise: [B, S, k] f32, the draws of all S steps to come.
        step: [B, 1] i64, tokens decoded so far.
        tokens: [B, S] i64; logprobs, rewards, scores: [B, S] f32: what has been decoded.
    """

    token: Tensor
    lm: Tail
    rm: Tail | None
    w: Tensor
    temperature: Tensor
    noise: Tensor
    step: Tensor
    tokens: Tensor
    logprobs: Tensor
    rewards: Tensor
    scores: Tensor

    def keep(self, rows: list[int]) -> None:
        """Leave the batch to these sequences, in ascending order."""
        index = torch.tensor(rows, device=self.token.device)
        self.lm.keep(index)
        if self.rm is not None:
            self.rm.keep(index)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[index])


def step(lm: Backbone, rm: BranchedClassifier, batch: Batch) -> None:
    """Choose and commit one token for every sequence (design: eq. 2 and 3 of the paper)."""
    k = batch.noise.shape[2]
    logits = lm.logits(batch.token, batch.lm.positions(), batch.lm)[:, -1]
    batch.lm.commit(torch.zeros_like(batch.token[:, 0]))
    logprobs, ids = ops.topk_logprobs(logits, k)
    noise = batch.noise.gather(1, batch.step[:, :, None].expand(-1, 1, k))[:, 0]

    if batch.rm is None:
        branch = torch.argmax(logprobs / batch.temperature[:, None] + noise, dim=1)
        reward = torch.full_like(batch.w, torch.nan)
        # w * r is nothing at w = 0, and not known at k = 1 with any other w.
        score = logprobs.gather(1, branch[:, None])[:, 0]
        score = torch.where(batch.w == 0, score, torch.nan)
    else:
        hidden = rm.hidden(ids, batch.rm.positions(), batch.rm)
        branch, reward, score = ops.select(
            hidden, rm.head_weight, rm.head_bias, logprobs, batch.w, batch.temperature, noise
        )
        batch.rm.commit(branch)

    chosen = branch[:, None]
    batch.token.copy_(ids.gather(1, chosen))
    batch.tokens.scatter_(1, batch.step, batch.token)
    batch.logprobs.scatter_(1, batch.step, logprobs.gather(1, chosen))
    batch.rewards.scatter_(1, batch.step, reward[:, None])
    batch.scores.scatter_(1, batch.step, score[:, None])
    batch.step += 1
