"""One JSON object per line and request, with an id that the client sees too, and no user's text.

Keys are in headers and prompts in bodies; neither is ever handed to the logger. An exception's
message may quote a prompt, so only its class and the lines of code are written.
"""

import json
import logging
import re
import sys
import time
import traceback
import uuid
import warnings
from contextvars import ContextVar
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from args_fast.encoding import BARE_TEXT
from args_fast.serve.metrics import Metrics

log = logging.getLogger("args_fast.serve")
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

LEVELS = {
    "args_fast.serve": logging.INFO,
    "py.warnings": logging.WARNING,
    "uvicorn": logging.WARNING,
}
GIVEN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
FIELDS = "args_fast.log_fields"  # of the scope
GONE = 499  # nginx's status for a client that did not wait for the answer
LONGEST_PATH = 200  # characters of a path that are logged
QUIET_PATHS = frozenset({"/health", "/metrics"})  # asked for every few seconds


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object; ``extra={"fields": {...}}`` joins it."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["traceback"] = traceback.format_tb(record.exc_info[2])
        return json.dumps(line, default=str)


def set_up(stream: TextIO | None = None) -> None:
    """Send the server's lines, and warnings of all libraries, to a stream (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", re.escape(BARE_TEXT))  # clients know which route they take
    for name, level in LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)


def note(scope: Scope, **fields: Any) -> None:
    """Add fields to the line that ends a request."""
    scope.get(FIELDS, {}).update(fields)


class RequestLog:
    """ASGI middleware that names a request, and writes its line and its count at the end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = dict(scope["headers"]).get(b"x-request-id", b"")
        name = asked.decode() if GIVEN_ID.fullmatch(asked) else uuid.uuid4().hex
        token = request_id.set(name)
        began = time.perf_counter()
        status = GONE
        fields: dict[str, Any] = {}
        scope[FIELDS] = fields

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"]
            self._metrics.count_response(path, status)
            if path not in QUIET_PATHS or status != 200:
                line = {
                    "method": scope["method"],
                    "path": path[:LONGEST_PATH],
                    "status": status,
                    "seconds": round(time.perf_counter() - began, 4),
                }
                log.info("request", extra={"fields": line | fields})
            request_id.reset(token)
