"""One step of ARGS for a batch of sequences: everything from the last token to the next one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from args_fast import ops
from args_fast.engine.backbone import Backbone
from args_fast.engine.tail import Tail
from args_fast.rewards.classifier import BranchedClassifier


@dataclass(frozen=True)
class Batch:
    """The device's side of B sequences for a burst of up to S steps. Nothing in it grows or moves.

    Attributes:
        token: [B, 1] i64, the last token, which the language model has not seen yet.
        lm: the language model's tail of one row.
        rm: the reward model's tail of k rows; None where the choice does not depend on it.
        first: [B] i64, zeros: the only row of the language model's tail.
        w, temperature: [B] f32; temperature 1 with noise 0 is the argmax.
        places: [B, k] i64, the candidate that stands in each place where sequences have fewer than
            k of them; None where all have k.
        noise: [B, S, k] f32, the draws of the burst; -inf where a sequence has no candidate.
        column: [1] i64, steps of the burst that are done.
        tokens: [B, S] i64, what has been chosen.
        numbers: [B, S, 3] f32, its logprob, reward and score.
    """

    token: Tensor
    lm: Tail
    rm: Tail | None
    first: Tensor
    w: Tensor
    temperature: Tensor
    places: Tensor | None
    noise: Tensor
    column: Tensor
    tokens: Tensor
    numbers: Tensor


def step(lm: Backbone, rm: BranchedClassifier, batch: Batch) -> None:
    """Choose and commit one token for every sequence (design: eq. 2 and 3 of the paper). Shapes
    depend on nothing but the batch's, and the host is not asked: it can be captured as a graph."""
    k = batch.noise.shape[2]
    logits = lm.logits(batch.token, batch.lm.positions(), batch.lm)[:, -1]
    batch.lm.commit(batch.first)
    logprobs, ids = ops.topk_logprobs(logits, k)
    if batch.places is not None:
        logprobs, ids = logprobs.gather(1, batch.places), ids.gather(1, batch.places)
    noise = batch.noise.index_select(1, batch.column)[:, 0]

    if batch.rm is None:
        branch = torch.argmax(logprobs / batch.temperature[:, None] + noise, dim=1)
        reward = torch.full_like(batch.w, torch.nan)
        # w * r is nothing at w = 0, and not known at k = 1 with any other w.
        score = logprobs.gather(1, branch[:, None])[:, 0]
        score = torch.where(batch.w == 0, score, torch.nan)
    else:
        hidden = rm.hidden(ids, batch.rm.positions(), batch.rm)
        branch, reward, score = batch.rm.select_commit(
            hidden, rm.head_weight, rm.head_bias, logprobs, batch.w, batch.temperature, noise
        )

    chosen = branch[:, None]
    batch.token.copy_(ids.gather(1, chosen))
    batch.tokens.index_copy_(1, batch.column, batch.token)
    numbers = torch.stack([logprobs.gather(1, chosen)[:, 0], reward, score], dim=1)
    batch.numbers.index_copy_(1, batch.column, numbers[:, None])
    batch.column.add_(1)
