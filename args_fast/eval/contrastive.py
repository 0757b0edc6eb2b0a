"""Contrastive search (Su et al., 2022), a baseline of the paper.

transformers 4.55 was the last release that came with it. Of the k most likely tokens the one wins
that has the highest (1 - alpha) * p(v | x) - alpha * max cos(h_v, h_j), h_v being the candidate's
last hidden state and h_j those of all tokens before it: likely, and unlike what has been
said. tests/eval/golden holds outputs of the original.
"""

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from args_fast.eval.cached import CachedModel, Enough


@torch.inference_mode()
def contrastive_search(
    model: PreTrainedModel, prompt: list[int], *, k: int, alpha: float, enough: Enough
) -> list[int]:
    """Decode one prompt.

    Args:
        model: a causal language model of transformers.
        prompt: at least one id.
        k: candidates per step.
        alpha: weight of the penalty, 0 to 1; 0 is greedy decoding.
        enough: called with each token; True ends the response.
    """
    run = CachedModel(model)
    output = run(torch.tensor([prompt]), output_hidden_states=True)
    context = normalize(output.hidden_states[-1][0], dim=-1)  # [t, H]
    logits = output.logits[0, -1]  # [V]
    tokens: list[int] = []
    while True:
        confidence, candidates = logits.float().softmax(dim=-1).topk(k)  # [k]
        run.cache.batch_repeat_interleave(k)
        output = run(candidates[:, None], output_hidden_states=True)
        hidden = normalize(output.hidden_states[-1][:, -1], dim=-1)  # [k, H]
        penalty = (context @ hidden.T).max(dim=0).values.float()  # [k]
        best = int(((1 - alpha) * confidence - alpha * penalty).argmax())
        tokens.append(int(candidates[best]))
        if enough(tokens[-1]):
            return tokens
        context = torch.cat([context, hidden[best : best + 1]])
        run.cache.batch_select_indices(torch.tensor([best], device=model.device))
        logits = output.logits[best, -1]
