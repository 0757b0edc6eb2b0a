"""Prompts and options, checked against the models once, become sequences for the engine."""

from collections.abc import Sequence as Many
from typing import cast

from transformers import PreTrainedTokenizerBase

from args_fast.config import DecodingConfig
from args_fast.engine.request import Request
from args_fast.errors import ConfigError, PromptError
from args_fast.models.backbone import Backbone
from args_fast.text import TextStream

Prompt = str | Many[int]


class Encoder:
    """What a pair of models accepts.

    Args:
        lm: the language model.
        rewards: the names of the rewards.
        tokenizer: of the language model; None for ids in, ids out.
    """

    def __init__(
        self, lm: Backbone, rewards: Many[str], tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self.tokenizer = tokenizer
        self._lm = lm
        self._rewards = list(rewards)

    def split(self, prompts: Prompt | Many[Prompt]) -> list[Prompt]:
        """One prompt or many -> a list of them. Raises PromptError where it is neither."""
        if isinstance(prompts, str):
            return [prompts]
        if not isinstance(prompts, Many):
            raise PromptError(
                f"prompts is a {type(prompts).__name__}; it must be a str, a list of str, a list "
                "of ids, or a list of lists of ids"
            )
        if prompts and all(isinstance(item, int) for item in prompts):
            return [cast(Many[int], prompts)]
        return [cast(Prompt, prompt) for prompt in prompts]

    def ids(self, prompt: Prompt) -> list[int]:
        """The ids of one prompt. Raises PromptError."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise PromptError(
                    "this decoder has no tokenizer, so prompts have to be lists of ids; pass "
                    "tokenizer= to decode text"
                )
            ids = self.tokenizer(prompt).input_ids
        elif isinstance(prompt, Many):
            ids = list(prompt)
        else:
            raise PromptError(
                f"a prompt is a {type(prompt).__name__}; it must be a str or a list of ids"
            )
        if not ids:
            raise PromptError(f"the prompt {prompt!r} has no tokens; give at least one")
        self.check(ids, "the prompt")
        return ids

    def check(self, ids: Many[int], name: str) -> None:
        """Raises PromptError where one of them is no id."""
        for token in ids:
            if not isinstance(token, int) or not 0 <= token < self._lm.vocabulary:
                raise PromptError(
                    f"{name} holds {token!r}, which is no id of this vocabulary; ids go from 0 "
                    f"to {self._lm.vocabulary - 1}"
                )

    def requests(self, prompt: Prompt, config: DecodingConfig) -> list[Request]:
        """One request per sample of a prompt. Raises PromptError, ConfigError."""
        ids = self.ids(prompt)
        if config.k > self._lm.vocabulary:
            raise ConfigError(
                f"k is {config.k}, but the vocabulary has {self._lm.vocabulary} tokens; k can be "
                f"at most that"
            )
        if config.stop and self.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer; this decoder has none")
        ends = self._end_tokens(config)
        weights = self._weights(config)
        return [
            Request(
                list(ids),
                sample,
                ends,
                self._text(sample),
                weights=dict(weights),
                prompt_text=prompt if isinstance(prompt, str) else None,
            )
            for sample in config.samples()
        ]

    def _weights(self, config: DecodingConfig) -> dict[str, float]:
        """The weight of each reward that guides a request, by name. Raises ConfigError."""
        if isinstance(config.reward, str):
            weights = {config.reward: 1.0}
        else:
            weights = dict(config.reward or dict.fromkeys(self._rewards, 1.0))
        unknown = sorted(set(weights) - set(self._rewards))
        if unknown:
            raise ConfigError(
                f"reward names {unknown[0]!r}; this decoder's rewards are "
                f"{', '.join(self._rewards)}"
            )
        weights = {name: float(weight) for name, weight in weights.items() if weight != 0}
        return weights if config.consults_reward else {}

    def _text(self, config: DecodingConfig) -> TextStream | None:
        return None if self.tokenizer is None else TextStream(self.tokenizer, config.stop)

    def _end_tokens(self, config: DecodingConfig) -> frozenset[int]:
        if config.eos_token_ids is not None:
            return frozenset(config.eos_token_ids)
        generation = self._lm.model.generation_config
        eos = (generation or self._lm.model.config).eos_token_id
        return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
