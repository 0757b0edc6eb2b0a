"""A supervisor as an operator has one: the server's process is started again whenever it ends."""

import asyncio
import os
import sys
import time
from pathlib import Path

import httpx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class Supervisor:
    """Runs ``server.py``, and notes when it was down and how much memory it took.

    Args:
        port: of the server.
        log: where its standard error goes.

    Attributes:
        kills: number of times that ``kill`` was called.
        deaths: number of times that the process ended before ``stop``.
        down: (from, until) of each time without a server, by ``time.monotonic()``.
        resident: (time, bytes) of the process that runs now, without the files that it maps: the
            kernel drops their pages and reads them again as it sees fit.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.kills = self.deaths = 0
        self.down: list[tuple[float, float]] = []
        self.resident: list[tuple[float, int]] = []
        self._port = port
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def run(self) -> None:
        """Start the server, and start it again whenever it ends."""
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}"}
        command = [sys.executable, str(HERE / "server.py"), str(self._port)]
        with self._log.open("w") as log:
            while not self._stopping:
                self._note_down()
                self.resident = []
                self._process = await asyncio.create_subprocess_exec(
                    *command, stderr=log, env=environment
                )
                watching = asyncio.ensure_future(self._watch())
                await self._process.wait()
                watching.cancel()
                self.deaths += not self._stopping

    def _note_down(self) -> None:
        if not self.down or self.down[-1][1] < float("inf"):
            self.down.append((time.monotonic(), float("inf")))

    async def _watch(self) -> None:
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    ready = (await client.get(self.url + "/health")).status_code == 200
                except httpx.TransportError:
                    ready = False
                if ready:
                    break
                await asyncio.sleep(0.1)
        self.down[-1] = (self.down[-1][0], time.monotonic())
        while True:
            self.resident.append((time.monotonic(), self._rss()))
            await asyncio.sleep(1)

    def _rss(self) -> int:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    async def ready(self) -> None:
        """Wait until the server answers."""
        while not self.down or self.down[-1][1] == float("inf"):
            await asyncio.sleep(0.05)

    def was_down(self, since: float) -> bool:
        """Whether the server was killed or starting at some time since then."""
        return any(until >= since for _, until in self.down)

    def kill(self) -> None:
        """End the process as a machine does that is out of memory: with no time for anything."""
        assert self._process is not None
        self.kills += 1
        self._note_down()
        self._process.kill()

    async def stop(self) -> int:
        """End the server as an operator does, and return its exit status."""
        assert self._process is not None
        self._stopping = True
        self._process.terminate()
        return await self._process.wait()
