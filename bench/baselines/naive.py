"""The paper's algorithm with no cache at all: ``args_fast.reference``, one prompt after another."""

from collections.abc import Sequence

from args_fast import ArgsDecoder, DecodingConfig, reference
from args_fast.bench.baselines.engine import Ids


def naive(pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig) -> list[Ids]:
    models = (pair.language_model, pair.reward_model)
    return [reference.decode(*models, prompt, config).token_ids for prompt in prompts]
