"""Our own engine: ARGS, and greedy decoding as its k = 1."""

from collections.abc import Sequence

from args_fast import ArgsDecoder, DecodingConfig


def args(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, k: int, w: float
) -> list[list[int]]:
    config = DecodingConfig(k=k, w=w, max_new_tokens=new_tokens, eos_token_ids=[])
    return [result.token_ids for result in pair.generate(list(prompts), config)]


def greedy(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, k: int, w: float
) -> list[list[int]]:
    return args(pair, prompts, new_tokens, 1, 0.0)
