"""All that the server knows of the engine. Everything else in this folder goes through here."""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from args_fast.async_decoder import AsyncArgsDecoder
from args_fast.config import DecodingConfig
from args_fast.decoder import ArgsDecoder
from args_fast.encoding import Encoder
from args_fast.engine.capacity import CacheUse
from args_fast.engine.scheduler import Stats
from args_fast.errors import ConfigError
from args_fast.generation import Candidate, Token
from args_fast.prompts import Plain
from args_fast.rewards.mixture import NamedRewards


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt as the language model sees it.

    Attributes:
        logprobs: log p(token | tokens before it), one per token; the first is NaN.
        candidates: the likeliest tokens at each place, most likely first; the first is empty.
    """

    logprobs: list[float]
    candidates: list[tuple[Candidate, ...]]


class EngineView:
    """One engine and its models, as the server sees them.

    Args:
        decoder: the models; the server's own from now on.
        max_waiting: samples that may wait while ``decoder.max_batch_size`` others decode.
        max_model_len: upper bound on ``self.max_model_len``.

    Attributes:
        tokenizer: the language model's.
        encoder: makes the same ids as the engine's, with a tokenizer of its own, for one thread.
        rewards: names that a request may guide by.
        max_model_len: tokens of a prompt with its answer.
        places: samples that may be under way, waiting ones included.

    Raises:
        ConfigError: the decoder has no tokenizer, or max_model_len is above what the models take.
    """

    def __init__(
        self, decoder: ArgsDecoder, *, max_waiting: int = 256, max_model_len: int | None = None
    ) -> None:
        if decoder.tokenizer is None:
            raise ConfigError(
                "the language model comes without a tokenizer; a server needs one. Save it next to "
                "the weights."
            )
        self.tokenizer: PreTrainedTokenizerBase = decoder.tokenizer
        self.max_model_len = _longest(decoder, max_model_len)
        self.encoder = Encoder(decoder.engine.lm, NamedRewards(), copy.deepcopy(decoder.tokenizer))
        self.rewards = decoder.reward_names
        self.max_batch_size = decoder.max_batch_size
        self.places = decoder.max_batch_size + max_waiting
        self._decoder = decoder
        self._engine = AsyncArgsDecoder(decoder, max_waiting=max_waiting)

    async def decode(
        self, prompt: Plain, config: DecodingConfig, receive: Callable[[list[Token]], None]
    ) -> None:
        """Decode one sample; ``receive`` gets the tokens of each step. Cancelling the task frees
        its pages.

        Raises:
            ArgsError: as ``AsyncArgsDecoder.decode``.
        """
        await self._engine.decode(prompt, config, receive)

    async def score(self, prompt: list[int], candidates: int) -> ScoredPrompt:
        """The language model's view of a prompt, with its likeliest tokens at each place.

        Args:
            prompt: ids.
            candidates: number of the likeliest tokens.
        """
        (logprobs,) = await self._engine.score([prompt])
        if not candidates:
            return ScoredPrompt(logprobs, [()] * len(prompt))
        # One step after each beginning of the prompt: beginnings share their pages, and the w of 0
        # leaves the reward out.
        config = DecodingConfig(
            k=candidates, w=0, max_new_tokens=1, eos_token_ids=(), return_candidates=True
        )
        beginnings = [prompt[:length] for length in range(1, len(prompt))]
        steps: list[tuple[Candidate, ...]] = [()]
        for start in range(0, len(beginnings), self.max_batch_size):
            together = beginnings[start : start + self.max_batch_size]
            for generation in await self._engine.generate(together, config):
                steps += generation.candidates or [()]
        return ScoredPrompt(logprobs, steps)

    async def close(self) -> None:
        """End every request that is under way with an error, and the engine."""
        await self._engine.close()

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests."""
        return self._engine.alive

    @property
    def running(self) -> int:
        """Number of samples that decode."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """Number of samples that wait for their turn."""
        return self._engine.waiting

    @property
    def cache(self) -> CacheUse:
        """Use of the caches."""
        return self._decoder.cache

    @property
    def stats(self) -> Stats:
        """Counts since the engine was made."""
        return self._decoder.engine.stats


def _longest(decoder: ArgsDecoder, asked: int | None) -> int:
    """Tokens of a prompt and its answer that both models and the cache take."""
    fits = int(min(decoder.cache.tokens, decoder.engine.lm.max_length))
    with suppress(ConfigError):  # a reward need not be one model
        config = decoder.reward_model.config.get_text_config()
        fits = min(fits, getattr(config, "max_position_embeddings", None) or fits)
    if asked is not None and asked > fits:
        raise ConfigError(
            f"max_model_len is {asked}; the models and the cache take {fits} tokens. Give at most "
            "that, or more memory to the cache."
        )
    return asked or fits
