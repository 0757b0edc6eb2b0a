"""Nucleus sampling (Holtzman et al., 2020) over the whole vocabulary, a baseline of the paper.

The draws come from a generator of each request's own on the CPU, as the engine's do, so a prompt
gets the same text whatever else is decoded.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, TopPLogitsWarper

from args_fast.eval.cached import CachedBatch, Enough


@torch.inference_mode()
def nucleus_sampling(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    p: float,
    temperature: float,
    seeds: Sequence[int],
    enough: Sequence[Enough],
) -> list[list[int]]:
    """Decode prompts by draws from the smallest set of tokens that has probability p.

    Args:
        model: a causal language model of transformers.
        prompts: at least one id each.
        p: probability of the nucleus, above 0 to 1.
        temperature: what logits are divided by, above 0.
        seeds: of each prompt's draws.
        enough: for each prompt, called with each of its tokens; True ends the response.
    """
    batch = CachedBatch(model, prompts, enough)
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    nucleus = TopPLogitsWarper(p)
    ids = batch.prompts
    while batch.running:
        logits = batch(ids).logits[:, -1].float().cpu() / temperature
        # The warper looks at the scores alone; it takes the ids so far as every warper does.
        none = torch.empty(len(logits), 0, dtype=torch.long)
        probabilities = nucleus(none, logits).softmax(dim=-1)
        chosen = [
            torch.multinomial(row, 1, generator=draws[number])
            for row, number in zip(probabilities, batch.running, strict=True)
        ]
        every = torch.arange(len(chosen), device=model.device)
        kept = batch.commit([int(token) for token in chosen], every)
        ids = torch.stack(chosen).to(model.device)[kept]
    return batch.tokens
