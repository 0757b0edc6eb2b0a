"""How answers reach a client: one JSON body, or events as the tokens come; and its leaving."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.types import Receive, Send

from args_fast.generation import Token
from args_fast.serve.decoding import Arrival, Decoding
from args_fast.serve.errors import as_api_error
from args_fast.serve.formats import AnswerFormat, as_json
from args_fast.serve.protocol import StreamOptions

T = TypeVar("T")
Steps = AsyncGenerator[list[Arrival], None]

DONE = b"data: [DONE]\n\n"
# A stream begins with its first token, so that a failure before it has a status of its own; but no
# later than this many seconds, because proxies give up on servers that say nothing.
PATIENCE = 5.0
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class ClientGoneError(Exception):
    """The client did not wait for its answer."""


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or cancel it as soon as the client closes the connection. Raises
    ClientGoneError."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def collect(decoding: Decoding) -> list[list[Token]]:
    """All tokens of every sample."""
    tokens: list[list[Token]] = [[] for _ in decoding.parts]
    async with aclosing(decoding.steps(whole=True)) as steps:
        async for step in steps:
            for sample, token in step:
                tokens[sample.index].append(token)
    return tokens


async def send_events(
    send: Send, shape: AnswerFormat, decoding: Decoding, options: StreamOptions | None
) -> None:
    """Stream an answer. Failures before the first token are raised; later ones are events."""
    async with aclosing(decoding.steps()) as steps:
        ahead = asyncio.ensure_future(_next(steps))
        try:
            await asyncio.wait({ahead}, timeout=PATIENCE)
            if ahead.done():
                ahead.result()
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            async with aclosing(_events(shape, decoding, ahead, steps, options)) as events:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)


async def _next(steps: Steps) -> list[Arrival] | None:
    return await anext(steps, None)


async def _events(
    shape: AnswerFormat,
    decoding: Decoding,
    ahead: Awaitable[list[Arrival] | None],
    steps: Steps,
    options: StreamOptions | None,
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, those of a step together."""
    include_usage = options is not None and bool(options.include_usage)
    continuous = include_usage and options is not None and bool(options.continuous_usage_stats)

    def chunk(choice: dict[str, Any]) -> bytes:
        usage = {"usage": decoding.usage if continuous else None} if include_usage else {}
        return shape.event([choice], usage)

    try:
        for sample in decoding.parts:
            if (opening := shape.opening(sample)) is not None:
                yield chunk(opening)
            if sample.config is None:
                yield chunk(shape.closing(sample, None))
        step = await ahead
        while step is not None:
            data = b""
            for sample, token in step:
                data += chunk(shape.piece(sample, token))
                if token.finish_reason is not None:
                    data += chunk(shape.closing(sample, token.finish_reason))
            yield data
            step = await anext(steps, None)
        yield (shape.event([], {"usage": decoding.usage}) if include_usage else b"") + DONE
    except Exception as error:
        yield b"data: " + as_json(as_api_error(error).body) + b"\n\n"
