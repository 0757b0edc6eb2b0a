"""Contrastive search (Su et al., 2022), a baseline of the paper.

transformers 4.55 was the last release that came with it. Of the k most likely tokens the one wins
that has the highest (1 - alpha) * p(v | x) - alpha * max cos(h_v, h_j), h_v being the candidate's
last hidden state and h_j those of all tokens before it: likely, and unlike what has been
said. tests/eval/golden holds outputs of the original.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from args_fast.eval.cached import CachedBatch, Enough


@torch.inference_mode()
def contrastive_search(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    k: int,
    alpha: float,
    enough: Sequence[Enough],
) -> list[list[int]]:
    """Decode prompts.

    Args:
        model: a causal language model of transformers.
        prompts: at least one id each.
        k: candidates per step.
        alpha: weight of the penalty, 0 to 1; 0 is greedy decoding.
        enough: for each prompt, called with each of its tokens; True ends the response.
    """
    batch = CachedBatch(model, prompts, enough)
    output = batch(batch.prompts, output_hidden_states=True)
    context = normalize(output.hidden_states[-1], dim=-1)  # [B, t, H]
    foreign = batch.padding  # [B, t], what no candidate is compared with
    logits = output.logits[:, -1]  # [B, V]
    while batch.running:
        confidence, candidates = logits.float().softmax(dim=-1).topk(k)  # [B, k]
        batch.branch(k)
        output = batch(candidates.reshape(-1, 1), output_hidden_states=True)
        hidden = normalize(output.hidden_states[-1][:, -1], dim=-1)
        hidden = hidden.view(len(candidates), k, -1)  # [B, k, H]
        likeness = (context @ hidden.transpose(1, 2)).masked_fill(foreign[..., None], -1)
        penalty = likeness.amax(dim=1).float()  # [B, k]
        best = ((1 - alpha) * confidence - alpha * penalty).argmax(dim=1)
        every = torch.arange(len(best), device=best.device)
        rows = every * k + best
        kept = batch.commit(candidates[every, best].tolist(), rows)
        context = torch.cat([context, hidden[every, best][:, None]], dim=1)[kept]
        foreign = torch.cat([foreign, torch.zeros_like(foreign[:, :1])], dim=1)[kept]
        logits = output.logits[rows[kept], -1]
    return batch.tokens
