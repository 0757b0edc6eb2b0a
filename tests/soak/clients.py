"""Clients of every temper: those that wait, that stream, that leave, and that ask for nonsense."""

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from cases import REFUSED, Case
from supervisor import Supervisor

PATIENCE = 600  # seconds after which a request counts as unanswered; a busy machine is slow
LOOKS = ("/v1/models", "/health", "/metrics", "/version", "/openapi.json", "/")


class Clients:
    """Traffic on one server; ``counts`` says what came of it, ``faults`` what must not have.

    Args:
        supervisor: of the server.
        cases: requests, with their answers.
        rng: draws what is asked.
        say: notes a line.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        cases: list[Case],
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.answered: list[float] = []  # the time of each right answer
        self._supervisor = supervisor
        self._cases = cases
        self._rng = rng
        self._say = say

    async def __aenter__(self) -> "Clients":
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(
            base_url=self._supervisor.url, timeout=PATIENCE, limits=limits
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def work(self, end: float) -> None:
        """One client after the other until the time is over."""
        actions = (
            self.ask,
            self.stream,
            self.leave_stream,
            self.give_up,
            self.misbehave,
            self.look,
        )
        while time.monotonic() < end:
            (action,) = self._rng.choices(actions, weights=(35, 35, 10, 5, 10, 5))
            began = time.monotonic()
            try:
                await action()
            except httpx.TransportError as error:
                if self._supervisor.was_down(began):
                    self.counts["cut by a kill"] += 1
                    await self._supervisor.ready()
                else:
                    self._fault(f"{action.__name__}: {type(error).__name__} {error}")

    async def left_over(self) -> dict[str, float]:
        """Running and waiting requests, and pages in use, once all clients have left."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        left: dict[str, float] = {}
        for _ in range(50):
            page = (await self._client.get("/metrics")).text
            lines = {
                name: re.search(rf"^args_fast:{name}\b.* (\S+)$", page, re.M) for name in names
            }
            left = {name: float(line[1]) for name, line in lines.items() if line}
            assert len(left) == len(names)
            if not any(left.values()):
                break
            await asyncio.sleep(0.1)
        return left

    # ---- what clients do -----------------------------------------------------------------------

    async def ask(self) -> None:
        """Wait for a whole answer."""
        case = self._rng.choice(self._cases)
        response = await self._post(case)
        choices = response.json()["choices"]
        self._compare(case, [_of_choice(choice) for choice in choices])

    async def stream(self) -> None:
        """Read a stream to its end."""
        case = self._rng.choice(self._cases)
        texts: dict[int, str] = {}
        ids: dict[int, list[int]] = {}
        ends: dict[int, str] = {}
        async with self._client.stream("POST", case.path, json=case.body | {"stream": True}) as r:
            if await self._overloaded(r):
                return
            done = False
            async for line in r.aiter_lines():
                if not line or done:
                    continue
                data = line.removeprefix("data: ")
                done = data == "[DONE]"
                for choice in [] if done else json.loads(data)["choices"]:
                    i, piece = choice["index"], choice.get("delta", choice)
                    texts[i] = texts.get(i, "") + (piece.get("content", piece.get("text")) or "")
                    ids.setdefault(i, []).extend((choice.get("args") or {}).get("token_ids") or [])
                    if choice["finish_reason"]:
                        ends[i] = choice["finish_reason"]
        if not done:
            self._fault(f"a stream ended without [DONE]: {case.body}")
            return
        self.counts["streams"] += 1
        self._compare(case, [(ids[i], texts[i], ends.get(i, "")) for i in sorted(texts)])

    async def leave_stream(self) -> None:
        """Close a stream in its middle."""
        case = self._rng.choice(self._cases)
        lines = self._rng.randrange(12)
        async with self._client.stream("POST", case.path, json=case.body | {"stream": True}) as r:
            async for _ in r.aiter_lines():
                lines -= 1
                if lines < 0:
                    break
        self.counts["streams left"] += 1

    async def give_up(self) -> None:
        """Ask for a whole answer and leave before it can be there."""
        case = self._rng.choice(self._cases)
        with suppress(httpx.ReadTimeout):
            wait = httpx.Timeout(PATIENCE, read=self._rng.choice((0.02, 0.1, 0.5)))
            await self._client.post(case.path, json=case.body, timeout=wait)
        self.counts["gave up"] += 1

    async def misbehave(self) -> None:
        """Ask for what must be refused, with an error in OpenAI's shape."""
        path, body, status = self._rng.choice(REFUSED)
        response = await self._client.post(path, json=body)
        if response.status_code == 429:  # the server is full, and has not looked at the request
            await self._wait(response)
            return
        error = response.json().get("error", {})
        if response.status_code != status or set(error) != {"message", "type", "param", "code"}:
            self._fault(f"{path} {str(body)[:80]}: {response.status_code} {response.text[:200]}")
        self.counts["refused"] += 1

    async def look(self) -> None:
        """Open one of the pages that say how the server is."""
        path = self._rng.choice(LOOKS)
        response = await self._client.get(path)
        if response.status_code != 200:
            self._fault(f"{path}: {response.status_code}")
        self.counts["looks"] += 1

    # ---- answers -------------------------------------------------------------------------------

    async def _post(self, case: Case) -> httpx.Response:
        while True:
            response = await self._client.post(case.path, json=case.body)
            if not await self._overloaded(response):
                return response

    async def _overloaded(self, response: httpx.Response) -> bool:
        """Whether there was no place; then the time that the server named has passed."""
        if response.status_code == 200:
            return False
        text = (await response.aread()).decode()
        if response.status_code != 429:
            raise AssertionError(f"{response.status_code} {text}")
        await self._wait(response)
        return True

    async def _wait(self, response: httpx.Response) -> None:
        self.counts["asked to wait"] += 1
        await asyncio.sleep(float(response.headers["Retry-After"]))

    def _compare(self, case: Case, answers: list[tuple[list[int], str, str]]) -> None:
        if case.ties:
            self.counts["not compared: too close to tell"] += 1
        elif answers == case.expected:
            self.counts["right"] += 1
            self.answered.append(time.monotonic())
        else:
            self.counts["wrong"] += 1
            self._fault(f"{case.path} {json.dumps(case.body)}: {answers}, not {case.expected}")

    def _fault(self, text: str) -> None:
        self._say(f"fault: {text[:2000]}")
        self.faults.append(text[:300])


def _of_choice(choice: dict[str, Any]) -> tuple[list[int], str, str]:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return choice["args"]["token_ids"], text, choice["finish_reason"]
