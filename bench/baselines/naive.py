"""The paper's algorithm with no cache at all: ``args_fast.reference``, one prompt after another."""

from collections.abc import Sequence

from args_fast import ArgsDecoder, DecodingConfig, reference


def naive(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, k: int, w: float
) -> list[list[int]]:
    config = DecodingConfig(k=k, w=w, max_new_tokens=new_tokens, eos_token_ids=[])
    models = (pair.language_model, pair.reward_model)
    return [reference.decode(*models, prompt, config).token_ids for prompt in prompts]
