"""Logits processors of ``generate``, which see a whole batch, for one row of it."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from args_fast.errors import ConfigError
from args_fast.models.processors import for_request


def without_warpers(
    processors: LogitsProcessorList, generation: GenerationConfig
) -> LogitsProcessorList:
    """The processors without those that ``generate`` made for temperature, top_k, top_p and min_p,
    which ARGS applies to its scores and candidates itself."""
    if not generation.do_sample:
        return processors
    warpers = {
        TemperatureLogitsWarper: ("temperature", generation.temperature),
        TopKLogitsWarper: ("top_k", generation.top_k),
        TopPLogitsWarper: ("top_p", generation.top_p),
        MinPLogitsWarper: ("min_p", generation.min_p),
    }
    kept = LogitsProcessorList()
    for processor in processors:
        if type(processor) not in warpers:
            kept.append(processor)
            continue
        name, value = warpers[type(processor)]
        own = getattr(processor, name)
        if own != value and name != "top_k":
            raise ConfigError(
                f"logits_processor has a {type(processor).__name__} of {own}, and {name} is "
                f"{value}; give {name} alone"
            )
    return kept


def processing(
    model: PreTrainedModel,
    processors: LogitsProcessorList,
    padding: list[int],
    row: int,
    rows: int,
) -> Callable[[list[int], Tensor], Tensor] | None:
    """What processes the logits of one row; None where nothing does.

    Args:
        model: the language model.
        processors: of ``generate``. They see one row at a time, [1, t], with its padding: some
            count from the length of the padded prompt.
        padding: ids on the left of the prompt.
        row, rows: index of the row, and how many there are.
    """
    own = LogitsProcessorList(_for_row(processor, row, rows) for processor in processors)
    process = for_request(model, own, padding, 1, frozenset())
    if process is None:
        return None
    return lambda ids, logits: process([*padding, *ids], logits)


def _for_row(processor: Any, row: int, rows: int) -> Any:
    """A processor that sees this row alone: what transformers' own hold of each row is narrowed."""
    alone: Any = copy.copy(processor)
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        alone._prefix_allowed_tokens_fn = lambda _, ids: allowed(row, ids)
    elif isinstance(processor, RepetitionPenaltyLogitsProcessor):
        if isinstance(processor.prompt_ignore_length, Tensor):
            alone.prompt_ignore_length = processor.prompt_ignore_length[row : row + 1]
    elif isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
        prompt = row * len(processor.encoder_input_ids) // rows
        alone.encoder_input_ids = processor.encoder_input_ids[prompt : prompt + 1]
    elif isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
        prompt = row * processor.batch_size // rows
        alone.generated_ngrams = processor.generated_ngrams[prompt : prompt + 1]
        alone.batch_size = 1
    else:
        return processor
    return alone
