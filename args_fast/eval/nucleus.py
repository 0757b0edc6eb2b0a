"""Nucleus sampling (Holtzman et al., 2020) over the whole vocabulary, a baseline of the paper.

The draws come from a generator of the request's own on the CPU, as the engine's do, so a prompt
gets the same text whatever was decoded before it.
"""

import torch
from transformers import PreTrainedModel, TopPLogitsWarper

from args_fast.eval.cached import CachedModel, Enough


@torch.inference_mode()
def nucleus_sampling(
    model: PreTrainedModel,
    prompt: list[int],
    *,
    p: float,
    temperature: float,
    seed: int,
    enough: Enough,
) -> list[int]:
    """Decode one prompt by draws from the smallest set of tokens that has probability p.

    Args:
        model: a causal language model of transformers.
        prompt: at least one id.
        p: probability of the nucleus, above 0 to 1.
        temperature: what logits are divided by, above 0.
        seed: of the draws.
        enough: called with each token; True ends the response.
    """
    run, generator = CachedModel(model), torch.Generator().manual_seed(seed)
    nucleus = TopPLogitsWarper(p)
    ids, tokens = torch.tensor([prompt]), []
    while True:
        logits = run(ids).logits[:, -1].float().cpu() / temperature
        # The warper looks at the scores alone; it takes the ids so far as every warper does.
        probabilities = nucleus(torch.empty(1, 0, dtype=torch.long), logits).softmax(dim=-1)
        ids = torch.multinomial(probabilities, 1, generator=generator)
        tokens.append(int(ids))
        if enough(tokens[-1]):
            return tokens
