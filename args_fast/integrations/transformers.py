"""ARGS within Hugging Face's ``generate``.

    lm.generate(**inputs, custom_generate=reward_guided(reward, k=10, w=1.5), max_new_tokens=64)

``generate`` prepares the prompt, its configuration, logits processors and stopping criteria as
usual, and gets what it returns as usual; only the decoding loop is the engine's.
"""

import inspect
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import GenerateDecoderOnlyOutput

from args_fast.config import DecodingConfig
from args_fast.errors import ConfigError
from args_fast.integrations import generate_call, row_processors
from args_fast.integrations.columns import Columns
from args_fast.integrations.engines import engine_of
from args_fast.options import EngineOptions, accepts_engine_options

SEEDS = 2**48  # drawn ones: room for a batch above each


@dataclass
class RewardGuidedOutput(GenerateDecoderOnlyOutput):
    """What ``generate`` returns with ``return_dict_in_generate=True``, and the rewards.

    Attributes:
        rewards: [B, new tokens] f32, r([x, v]) of each new token; NaN where no reward was asked and
            after the end of a sequence.
    """

    rewards: Tensor | None = None


@accepts_engine_options
def reward_guided(
    reward: Any,
    k: int = 10,
    w: float = 1.5,
    *,
    seed: int | None = None,
    weights: str | dict[str, float] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> "RewardGuided":
    """A decoding loop for ``generate(custom_generate=...)``.

    ``do_sample=False`` is ARGS-greedy. ``do_sample=True`` draws from softmax(s / temperature) over
    the k candidates; top_p and min_p of ``generate`` narrow them.

    Args:
        reward: what ``ArgsDecoder`` takes: a reward model, an object of ``args_fast.rewards``,
            several by name; or the path or hub id of one.
        k, w: as in ``DecodingConfig``.
        seed: of the draws, as in ``DecodingConfig``; None draws one from torch's generator, so that
            ``torch.manual_seed`` decides as it does for ``generate``.
        weights: of several rewards, the name of the one that guides, or weights by name.
        tokenizer: of the language model, for rewards that read text.
        options: how the engine uses the machine.

    Raises:
        ConfigError: an option is not one, or is outside its range.
    """
    config = DecodingConfig(k=k, w=w, seed=seed or 0, reward=weights)
    return RewardGuided(reward, config, seed is None, tokenizer, EngineOptions.take(options))


@dataclass(frozen=True)
class RewardGuided:
    """What ``reward_guided`` returns: called by ``generate`` in place of its own loop.

    Attributes:
        reward: as it was given.
        config: the fields that do not come from ``generate``.
        draws_seed: whether the seed comes from torch's generator, in place of the config.
        tokenizer: the language model's.
        options: of the engine.
    """

    reward: Any
    config: DecodingConfig
    draws_seed: bool
    tokenizer: PreTrainedTokenizerBase | None
    options: EngineOptions

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | Tensor:
        """The decoding loop, as ``generate`` calls it.

        Raises:
            ConfigError: ``generate`` was asked for something that this loop does not do.
            PromptError: a prompt is padded on the right.
            ArgsError: what ``ArgsDecoder`` raises.
        """
        dropped = _dropped_arguments()
        streamer = dropped.get("streamer") if streamer is None else streamer
        if synced_gpus or dropped.get("assistant_model") is not None:
            name = "synced_gpus" if synced_gpus else "assistant_model"
            raise ConfigError(f"{name} is not supported by reward_guided; leave it out")
        generate_call.check(generation_config, self.config, model_kwargs)
        prompts = generate_call.prompts(input_ids, model_kwargs)
        processors = row_processors.without_warpers(logits_processor, generation_config)
        decoder = engine_of(
            model, self.reward, self.tokenizer, self.options, processes_logits=bool(processors)
        )
        limit = stopping_criteria.max_length or generation_config.max_length
        config = generate_call.config(self.config, generation_config, limit - input_ids.shape[1])
        seeds = self._seeds(generation_config, len(prompts))
        requests = []
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            (request,) = decoder.requests(prompt, replace(config, seed=seed))
            padding = input_ids[row, : input_ids.shape[1] - len(prompt)].tolist()
            request.process_logits = row_processors.processing(
                model, processors, padding, row, len(prompts)
            )
            request.end_tokens = generate_call.end_tokens(stopping_criteria)
            requests.append(request)
        columns = Columns(decoder.engine, requests, input_ids, generation_config)
        sequences = columns.decode(stopping_criteria, streamer)
        if not generation_config.return_dict_in_generate:
            return sequences
        logits = _logits(model, prompts, sequences) if generation_config.output_logits else None
        return RewardGuidedOutput(
            sequences=sequences,  # type: ignore[arg-type]
            scores=columns.scores,  # type: ignore[arg-type]
            logits=logits,  # type: ignore[arg-type]
            rewards=columns.rewards(),
        )

    def _seeds(self, generation_config: GenerationConfig, rows: int) -> list[int]:
        """One per row. Rows of one prompt have seeds in sequence, as ``num_return_sequences`` of a
        DecodingConfig gives them; seeds that are drawn differ from row to row."""
        samples = generation_config.num_return_sequences or 1
        if not (self.draws_seed and generation_config.do_sample):
            return [self.config.seed + row % samples for row in range(rows)]
        start = int(torch.randint(SEEDS, ()))
        return [start + row for row in range(rows)]


def generate(
    model: PreTrainedModel,
    reward: Any = None,
    k: int = 10,
    w: float = 1.5,
    *,
    seed: int | None = None,
    weights: str | dict[str, float] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    engine: dict[str, Any] | None = None,
    **arguments: Any,
) -> GenerateDecoderOnlyOutput | Tensor:
    """``generate`` with ARGS, as a ``custom_generate/generate.py`` is called.

    Args:
        model: the language model.
        reward, k, w, seed, weights, tokenizer: as for ``reward_guided``.
        engine: options of the engine.
        arguments: of ``generate``.

    Raises:
        ConfigError: there is no reward; else as ``reward_guided`` and ``generate``.
    """
    if reward is None:
        raise ConfigError("reward is missing: generate(..., reward=reward_model, k=10, w=1.5)")
    loop = reward_guided(
        reward, k, w, seed=seed, weights=weights, tokenizer=tokenizer, **(engine or {})
    )
    stop = arguments.pop("stop_strings", None)
    if stop is not None:
        if tokenizer is None:
            raise ConfigError("stop_strings needs tokenizer=, the language model's")
        criteria = StoppingCriteriaList(arguments.pop("stopping_criteria", None) or [])
        criteria.append(StopStringCriteria(tokenizer, stop))
        arguments["stopping_criteria"] = criteria
    # Not model.generate: a repository with this file next to its weights replaces it.
    return GenerationMixin.generate(model, custom_generate=loop, **arguments)


def _dropped_arguments() -> dict[str, Any]:
    """Arguments of the ``generate`` that calls. transformers feeds a streamer the prompt and does
    not hand it to a callable, and its reader would wait for ever; so it is looked up."""
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return {} if frame is None else frame.f_locals


def _logits(
    model: PreTrainedModel, prompts: list[list[int]], sequences: Tensor
) -> tuple[Tensor, ...]:
    """The language model's logits of each new token, [B, V] f32 for each step: one more pass over
    each sequence without its padding."""
    rows = []
    new = sequences.shape[1] - max(map(len, prompts))
    for row, prompt in zip(sequences, prompts, strict=True):
        ids = row[row.shape[0] - new - len(prompt) :]
        out = model(input_ids=ids[None].to(model.device), use_cache=False)
        rows.append(out.logits[0, len(prompt) - 1 : -1].float().to(sequences.device))
    return torch.stack(rows, dim=1).unbind(0)
