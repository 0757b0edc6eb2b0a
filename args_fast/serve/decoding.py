"""From a request to the engine, and back as tokens: common to chat and text completions."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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


Arrival = tuple[Sample, Token]


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
        self._arrived: list[Arrival] = []  # and not taken by ``steps`` yet
        self._news = asyncio.Event()
        self._whole = False
        self._unfinished = sum(part.config is not None for part in parts)
        self._error: ApiError | None = None

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

    async def steps(self, *, whole: bool = False) -> AsyncGenerator[list[Arrival], None]:
        """The tokens of all samples, as many at a time as have come; or all of them at the end.
        Closing the generator, or an error of one sample, cancels them all.

        Raises:
            ApiError: whatever went wrong, after the tokens that came before it.
        """
        self._whole = whole
        self._metrics.prompt_tokens.inc(self.prompt_tokens)
        tasks = [asyncio.ensure_future(self._decode(part)) for part in self.parts if part.config]
        try:
            while self._unfinished or self._arrived:
                if self._arrived:
                    arrived, self._arrived = self._arrived, []
                    yield arrived
                elif self._error is not None:
                    raise self._error
                else:
                    self._news.clear()
                    await self._news.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _decode(self, part: Sample) -> None:
        assert part.config is not None
        watch = Stopwatch(self._metrics, self._began)
        receive = partial(self._receive, part, watch)
        try:
            await self._engine.decode(part.prompt.source, part.config, receive)
        except Exception as error:
            self._error = as_api_error(error)
            self._news.set()
        else:
            watch.end()

    def _receive(self, part: Sample, watch: Stopwatch, tokens: list[Token]) -> None:
        """Take the tokens of one step of a sample."""
        if self.first_token is None:
            self.first_token = time.perf_counter() - self._began
        for token in tokens:
            watch.token()
            self._arrived.append((part, token))
        self._count(part, tokens)
        self._unfinished -= tokens[-1].finish_reason is not None
        if not (self._whole and self._unfinished):
            self._news.set()

    def _count(self, part: Sample, tokens: list[Token]) -> None:
        config, prompt = part.config, id(part.prompt)
        assert config is not None
        if (cached := tokens[0].cached_tokens) is not None:
            self._cached[prompt] = min(self._cached.get(prompt, cached), cached)
        self.new_tokens += len(tokens)
        self._metrics.generation_tokens.inc(len(tokens))
        if config.consults_reward:
            self._metrics.reward_rows.inc(config.k * len(tokens))
        if (reason := tokens[-1].finish_reason) is not None:
            self._metrics.count_finished(reason)
