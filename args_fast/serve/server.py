"""A process that serves: one socket, uvicorn, and an end that lets requests finish."""

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable

import uvicorn
from fastapi import FastAPI

from args_fast.serve import logs

KEEP_ALIVE = 30  # seconds; longer than clients keep idle connections, so that they close first
AFTER_DRAIN = 5  # seconds that clients get to read the error that ended their request


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, which uvicorn will listen at; port 0 is any free one.

    Raises:
        OSError: the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(
            f"cannot listen at {host}, port {port}: {error.strerror}; give another --host or --port"
        ) from error
    return listening


def address(listening: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """After SIGTERM it takes no more connections, gives requests under way some time to finish, and
    then ends them with an error. A second signal ends it at once.

    Args:
        app: the application.
        drain_seconds: the time that requests get.
        call_off: ends every request with an error.
    """

    def __init__(
        self, app: FastAPI, drain_seconds: float, call_off: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=math.ceil(drain_seconds) + AFTER_DRAIN,
            )
        )
        self._drain_seconds = drain_seconds
        self._call_off = call_off

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then end what is left."""
        late = asyncio.ensure_future(self._end_late())
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    async def _end_late(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        await self._call_off()


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until a signal ends it. Logs go to standard error as JSON lines."""
    logs.set_up()
    service = app.state.service
    server = DrainingServer(app, service.options.drain_seconds, service.engine.close)
    server.run(sockets=[listening])
