"""API keys: any of several lets a client in, and comparing them takes the same time for all."""

import hmac
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from args_fast.errors import ConfigError
from args_fast.serve.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health"})  # the page asks for a key; probes have none


class KeyCheck:
    """ASGI middleware that answers 401 where a request comes without one of the keys."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        closed = scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS
        if closed and not self._admits(scope):
            error = ApiError(
                401,
                "this server wants one of its API keys, as the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
            )
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = header.partition(b" ")
        digest = _digest(key.strip())
        # Every key is compared, and in constant time, so that the time says nothing of any.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()  # of one length, whatever the key's


def read_keys(texts: Iterable[str], file: Path | None) -> tuple[str, ...]:
    """Keys from the command line or the environment (split at commas), and from a file with one
    per line ('#' begins a comment). Raises ConfigError where the file holds none."""
    keys = [key.strip() for text in texts for key in text.split(",")]
    if file is not None:
        lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
        if not any(lines):
            raise ConfigError(f"{file} holds no API key; write one per line")
        keys += lines
    return tuple(dict.fromkeys(key for key in keys if key))
