"""transformers and args-fast: greedy decoding, ARGS, and the two published ways of caching.

The reward model has the language model's own weights with a head drawn at random, so it is of the
same size; speed does not depend on what a head says.
"""

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Decode

K, W = 10, 1.5


def load(model: str, dtype: str, threads: int, room: int) -> "dict[str, Decode]":
    """``model``: a transformers folder; ``room``: prompt and new tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from args_fast import ArgsDecoder
    from args_fast.bench import baselines

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=kind)
    rm = AutoModelForSequenceClassification.from_pretrained(model, dtype=kind, num_labels=1)
    pair = ArgsDecoder(lm, rm)

    def decode(method: str, prompt: list[int], new_tokens: int) -> list[int]:
        return baselines.METHODS[method](pair, [prompt], new_tokens, K, W)[0]

    names = [baselines.TRANSFORMERS, baselines.GREEDY, baselines.ARGS]
    names += [baselines.K_COPIES, baselines.NAIVE]
    return {name: partial(decode, name) for name in names}
