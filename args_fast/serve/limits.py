"""What one client may take from the others: bytes of a body, and places at the engine."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from args_fast.serve.errors import ApiError, invalid

LONGEST_WAIT = 60  # seconds that a refused client is asked to wait at most


class BodyLimit:
    """ASGI middleware that takes a whole body in, up to a size and within a time.

    Args:
        app: the application, which then finds the body complete.
        max_bytes: larger bodies get a 413.
        seconds: bodies that take longer to arrive get a 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(int(dict(scope["headers"]).get(b"content-length", b"0")))
            body = await asyncio.wait_for(self._read(receive), self._seconds)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except asyncio.TimeoutError:
            late = ApiError(408, f"the body did not arrive within {self._seconds:g} s")
            await late.response()(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            self._check(len(body))
            if not message.get("more_body", False):
                return bytes(body)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise ApiError(
                413,
                f"the body has {size} bytes or more; this server takes {self._max_bytes}. Send "
                "fewer prompts at a time, or raise --max-body",
                code="body_too_large",
            )


class Admission:
    """Places at the engine, to decode or to wait; a request that finds none left gets a 429.

    Args:
        places: samples that may be under way, waiting ones included.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self._seconds = 1.0  # that a request took lately, a running mean

    @contextmanager
    def admit(self, samples: int) -> Iterator[None]:
        """Hold places for the samples of a request. Raises a 400 where there will never be enough
        places, and a 429 where there are not enough now."""
        if samples > self.places:
            raise invalid(
                f"this request asks for {samples} answers (prompts times n); this server takes "
                f"{self.places} at a time. Send them in several requests."
            )
        if self.taken + samples > self.places:
            raise ApiError(
                429,
                f"{self.taken} of {self.places} places are taken and {samples} are asked for; try "
                "later",
                type="rate_limit_error",
                code="overloaded",
                retry_after=min(LONGEST_WAIT, math.ceil(self._seconds)),
            )
        began = asyncio.get_running_loop().time()
        self.taken += samples
        try:
            yield
        finally:
            self.taken -= samples
            took = asyncio.get_running_loop().time() - began
            self._seconds += (took - self._seconds) / 8
