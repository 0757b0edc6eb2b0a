"""One step of ARGS for a batch of sequences: everything from the last token to the next one.

The same work comes in one of two orders. In the plain one the language model reads the token that
was chosen last, and then the reward model judges k candidates. With lookahead the language model
reads all k candidates, as a tail of its own, while they are judged, and the choice picks one of k
rows of logits that are already there (design, section 3).
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from args_fast import ops
from args_fast.engine.streams import SideStream
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches
from args_fast.rewards.classifier import BranchedClassifier


@dataclass(frozen=True)
class Lookahead:
    """The language model's side of a batch that looks ahead.

    Attributes:
        logprobs, ids: [B, k] f32 and i64, the candidates of the next step.
        tail: of k rows, which are theirs.
    """

    logprobs: Tensor
    ids: Tensor
    tail: Branches


@dataclass(frozen=True)
class Batch:
    """The device's side of B sequences for bursts of up to S steps. Nothing in it grows or moves.
    It is on the language model's device, but for the reward model's tail.

    Attributes:
        token: [B, 1] i64, the last token.
        lm: the language model's tail of one row, which is that token's.
        ahead: None in the plain order.
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
    lm: Branches
    ahead: Lookahead | None
    rm: Branches | None
    first: Tensor
    w: Tensor
    temperature: Tensor
    places: Tensor | None
    noise: Tensor
    column: Tensor
    tokens: Tensor
    numbers: Tensor


def begin_lookahead(lm: Backbone, batch: Batch) -> None:
    """Before the first step that looks ahead the last token is read as in the plain order."""
    _keep(batch, _read_last(lm, batch))


def step(lm: Backbone, rm: BranchedClassifier, batch: Batch, beside: SideStream) -> None:
    """Choose and commit one token for every sequence (design: eq. 2 and 3 of the paper). Shapes
    depend on nothing but the batch's, and the host is not asked: it can be captured as a graph."""
    ahead = batch.ahead
    if ahead is None:
        logprobs, ids = _candidates(batch, _read_last(lm, batch))
    else:
        logprobs, ids = ahead.logprobs, ahead.ids
    noise = batch.noise.index_select(1, batch.column)[:, 0]

    if batch.rm is None:
        branch = torch.argmax(logprobs / batch.temperature[:, None] + noise, dim=1)
        reward = torch.full_like(batch.w, torch.nan)
        # w * r is nothing at w = 0, and not known at k = 1 with any other w.
        score = logprobs.gather(1, branch[:, None])[:, 0]
        score = torch.where(batch.w == 0, score, torch.nan)
    else:
        with nullcontext() if ahead is None else beside():
            # Before anything that takes long: a copy between devices waits for both.
            candidates, *scoring = (
                _to(rm, x) for x in (ids, logprobs, batch.w, batch.temperature, noise)
            )
            hidden = rm.hidden(candidates, batch.rm.positions(), batch.rm)
        if ahead is not None:
            following = lm.logits(ids, ahead.tail.positions(), ahead.tail)
            beside.join()
        chosen = batch.rm.select_commit(hidden, rm.head_weight, rm.head_bias, *scoring)
        branch, reward, score = (_to(lm, x) for x in chosen)

    at = branch[:, None]
    batch.token.copy_(ids.gather(1, at))
    batch.tokens.index_copy_(1, batch.column, batch.token)
    numbers = torch.stack([logprobs.gather(1, at)[:, 0], reward, score], dim=1)
    batch.numbers.index_copy_(1, batch.column, numbers[:, None])
    batch.column.add_(1)

    if ahead is not None:
        ahead.tail.commit(branch)
        row = at[:, :, None].expand(-1, 1, following.shape[2])
        _keep(batch, following.gather(1, row)[:, 0])


def _read_last(lm: Backbone, batch: Batch) -> Tensor:
    """The language model reads the last token of every sequence: logits [B, V] of the next."""
    logits = lm.logits(batch.token, batch.lm.positions(), batch.lm)[:, -1]
    batch.lm.commit(batch.first)
    return logits


def _candidates(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [B, V] -> logprobs and ids [B, k] of the candidates, in the places that they have."""
    logprobs, ids = ops.topk_logprobs(logits, batch.noise.shape[2])
    if batch.places is not None:
        logprobs, ids = logprobs.gather(1, batch.places), ids.gather(1, batch.places)
    return logprobs, ids


def _keep(batch: Batch, logits: Tensor) -> None:
    """Keep the candidates that logits [B, V] make for the next step."""
    assert batch.ahead is not None
    logprobs, ids = _candidates(batch, logits)
    batch.ahead.logprobs.copy_(logprobs)
    batch.ahead.ids.copy_(ids)


def _to(model: Backbone, tensor: Tensor) -> Tensor:
    """On the model's device: the tensor itself, unless the two models have one each."""
    return tensor.to(model.device, non_blocking=True)
