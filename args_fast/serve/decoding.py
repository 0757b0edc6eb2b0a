"""From a request to the engine, and back as tokens: common to chat and text completions."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from args_fast.config import DecodingConfig
from args_fast.generation import Token
from args_fast.serve.engine_view import EngineView
from args_fast.serve.errors import ApiError, as_api_error, invalid
from args_fast.serve.metrics import Metrics, Stopwatch
from args_fast.serve.options import ServerOptions
from args_fast.serve.prompts import EncodedPrompt, longest_context, too_long
from args_fast.serve.protocol import DecodingRequest

SEEDS = 2**32  # drawn ones: small enough for every JSON reader


@dataclass(frozen=True)
class Sample:
    """One answer to decode.

    Attributes:
        index: its place in ``choices``.
        prompt: the prompt, which samples of one share.
        config: how it is decoded; None where no new token is asked for.
    """

    index: int
    prompt: EncodedPrompt
    config: DecodingConfig | None


def base_config(
    request: DecodingRequest, options: ServerOptions, *, candidates: int
) -> DecodingConfig:
    """The options of a request, all but the number of new tokens.

    Args:
        request: what was asked for.
        options: the server's, with its defaults.
        candidates: alternatives per token that the answer has to show.

    Raises:
        ApiError, ConfigError: a field is outside its range.
    """
    asked: dict[str, Any] = {}
    if request.args is not None:
        asked |= request.args.model_dump(exclude_none=True)
    n = request.n or 1
    if n > options.limit_n:
        raise invalid(f"n is {n}; this server gives at most {options.limit_n} answers", "n")
    if request.ignore_eos:
        asked.setdefault("eos_token_ids", ())
    if candidates:
        asked["return_candidates"] = True
    config = replace(
        options.defaults,
        **asked,
        temperature=request.temperature or None,
        top_p=None if request.top_p == 1 else request.top_p,
        seed=secrets.randbelow(SEEDS) if request.seed is None else request.seed,
        stop=request.stops,
        num_return_sequences=n,
    )
    if candidates > config.k:
        raise invalid(
            f"{candidates} alternatives per token are asked for, but a step has args.k = "
            f"{config.k} candidates; ask for at most that, or raise args.k",
            "logprobs",
        )
    return config


def samples(
    request: DecodingRequest, prompts: Sequence[EncodedPrompt], config: DecodingConfig, longest: int
) -> list[Sample]:
    """One sample per prompt and answer. Raises an ApiError where one does not fit."""
    made: list[Sample] = []
    for prompt in prompts:
        length = len(prompt.ids)
        room = longest - length
        new = request.new_tokens
        if new is None and room < 1:
            raise too_long(str(length), longest)
        if new is not None and new > room:
            raise invalid(
                f"{longest_context(longest)}, but the prompt has {length} and {new} new ones "
                f"are asked for. Shorten the prompt, or set max_tokens to at most {room}.",
                "max_tokens",
                "context_length_exceeded",
            )
        new = room if new is None else new
        for single in config.samples():
            own = replace(single, max_new_tokens=new) if new else None
            made.append(Sample(len(made), prompt, own))
    return made


class Decoding:
    """The samples of one request, under way.

    Args:
        engine: where they are decoded.
        metrics: what is counted.
        parts: the samples.
        began: ``time.perf_counter()`` at the request's arrival.

    Attributes:
        new_tokens: number of tokens so far.
        first_token: seconds from the arrival to the first token; None before it.
    """

    def __init__(
        self, engine: EngineView, metrics: Metrics, parts: Sequence[Sample], began: float
    ) -> None:
        self.parts = parts
        self.new_tokens = 0
        self.first_token: float | None = None
        self._engine = engine
        self._metrics = metrics
        self._began = began
        self._cached: dict[int, int] = {}  # tokens in the cache, by id() of the prompt

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompts; a prompt with several answers counts once."""
        distinct = {id(part.prompt): len(part.prompt.ids) for part in self.parts}
        return sum(distinct.values())

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's count of tokens. Those in the cache were not read for any of the answers."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.new_tokens,
            "total_tokens": self.prompt_tokens + self.new_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }

    async def tokens(self) -> AsyncGenerator[tuple[Sample, Token], None]:
        """The tokens of all samples as they come. Closing the generator, or an error of one sample,
        cancels them all.

        Raises:
            ApiError: whatever went wrong.
        """
        self._metrics.prompt_tokens.inc(self.prompt_tokens)
        arrived: asyncio.Queue[tuple[Sample, Token] | ApiError] = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(self._decode(part, arrived)) for part in self.parts if part.config
        ]
        try:
            open_samples = len(tasks)
            while open_samples:
                item = await arrived.get()
                if isinstance(item, ApiError):
                    raise item
                open_samples -= item[1].finish_reason is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _decode(
        self, part: Sample, arrived: asyncio.Queue[tuple[Sample, Token] | ApiError]
    ) -> None:
        assert part.config is not None
        watch = Stopwatch(self._metrics, self._began)
        try:
            async with aclosing(self._engine.stream(part.prompt.source, part.config)) as stream:  # type: ignore[type-var]
                async for token in stream:
                    watch.token()
                    self._count(part, token)
                    arrived.put_nowait((part, token))
        except Exception as error:
            arrived.put_nowait(as_api_error(error))
        else:
            watch.end()

    def _count(self, part: Sample, token: Token) -> None:
        config, prompt = part.config, id(part.prompt)
        assert config is not None
        if token.cached_tokens is not None:
            fewest = self._cached.get(prompt, token.cached_tokens)
            self._cached[prompt] = min(fewest, token.cached_tokens)
        if self.first_token is None:
            self.first_token = time.perf_counter() - self._began
        self.new_tokens += 1
        self._metrics.generation_tokens.inc()
        if config.consults_reward:
            self._metrics.reward_rows.inc(config.k)
        if token.finish_reason is not None:
            self._metrics.count_finished(token.finish_reason)
