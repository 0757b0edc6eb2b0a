"""The language model's log-probability of each token of a given text."""

import torch

from args_fast.kvcache.storage import PagedCache, pages_for
from args_fast.kvcache.transfer import send
from args_fast.models.backbone import PREFILL_CHUNK, Backbone
from args_fast.models.prefill import Prefill


def prompt_logprobs(lm: Backbone, ids: list[int]) -> list[float]:
    """log p(ids[i] | ids[:i]) over the whole vocabulary, f32; NaN for the first token, which
    nothing precedes. Works in pieces, so no more than a piece's logits are held at once."""
    cache = PagedCache(lm.layout, pages_for(len(ids)))
    pages = list(range(1, 1 + pages_for(len(ids))))
    scores = [float("nan")]
    for start in range(0, len(ids) - 1, PREFILL_CHUNK):
        end = min(start + PREFILL_CHUNK, len(ids) - 1)
        piece = send([ids[start:end]], torch.int64, lm.device)
        context = Prefill(cache, pages, start, piece.shape[1])
        logits = lm.logits(piece, context.position[None], context)[0].float()
        following = ids[start + 1 : end + 1]
        index = send(following, torch.int64, lm.device)[:, None]
        scores += logits.log_softmax(dim=1).gather(1, index)[:, 0].tolist()
    return scores
