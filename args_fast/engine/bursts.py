"""The runners of an engine: which requests run together, and when a burst is launched and read."""

from collections.abc import Callable
from typing import Any

from args_fast.engine.drafting import Drafting
from args_fast.engine.request import Request, Status
from args_fast.engine.runner import Runner
from args_fast.engine.scheduler import Scheduler
from args_fast.rewards.panel import Key, Panel

# Steps of a burst, and bursts that may be in flight before the last one is read. On the CPU a look
# at the tokens costs nothing. On CUDA the host would make the device wait, so the end of a request
# is noticed up to two bursts late, and the surplus is dropped.
STEPS_PER_BURST = {"cpu": 1, "cuda": 8}
BURSTS_IN_FLIGHT = {"cpu": 0, "cuda": 1}


class Bursts:
    """Decodes the scheduler's running requests, those of one key together.

    Args:
        panel: the rewards.
        scheduler: of the engine.
        make_runner: a runner for a key that has none yet.
        in_flight: bursts that may be in flight before the last one is read.
        fail: ends one request with an error.
        leave: called with each request that has finished or was preempted, when its pages are free.
        drafting: whose drafts are verified; None where nothing drafts. With it no burst may be in
            flight.
    """

    def __init__(
        self,
        panel: Panel,
        scheduler: Scheduler,
        *,
        make_runner: Callable[[Key], Runner],
        in_flight: int,
        fail: Callable[[Request, Exception], None],
        leave: Callable[[Request], None],
        drafting: Drafting | None = None,
    ) -> None:
        self.runners: dict[Key, Runner] = {}
        self._panel = panel
        self._scheduler = scheduler
        self._make_runner = make_runner
        self._in_flight = in_flight
        self._fail = fail
        self._leave = leave
        self._drafting = drafting

    def decode(self) -> None:
        """One burst of every runner that has requests."""
        keys = [self._panel.key(request) for request in self._scheduler.running]
        keys += [key for key, runner in self.runners.items() if runner.bursts_in_flight]
        for key in dict.fromkeys(keys):
            self._decode(self.runner(key))

    def runner(self, key: Key) -> Runner:
        """The runner of a key."""
        if key not in self.runners:
            self.runners[key] = self._make_runner(key)
        return self.runners[key]

    def drop_in_flight(self) -> None:
        """Forget every burst in flight."""
        for runner in self.runners.values():
            runner.drop_in_flight()

    @property
    def newest(self) -> list[Any]:
        """The event at the end of what each runner has launched, on CUDA."""
        return [r.newest for r in self.runners.values() if r.newest is not None]

    def _decode(self, runner: Runner) -> None:
        """Launch a burst, and read those before it; requests with drafts have bursts of their own,
        one for each length."""
        if not self._continues(runner):
            self._read(runner)
        rows = self._rows(runner)
        drafts = self._drafts(rows)
        before = [len(request.tokens) for request in rows]
        plain = [request for request in rows if request not in drafts]
        steps = _burst_steps(runner, plain)
        self._burst(runner, plain, steps, lambda running: runner.launch(running, steps))
        for length in sorted(set(map(len, drafts.values()))):
            group = [request for request in rows if len(drafts.get(request, ())) == length]
            self._burst(
                runner,
                group,
                1 + length,
                lambda running: runner.verify(running, [drafts[r] for r in running]),
            )
        if self._drafting is not None:
            self._note(self._drafting, drafts, dict(zip(rows, before, strict=True)))

    def _burst(
        self,
        runner: Runner,
        rows: list[Request],
        steps: int,
        launch: Callable[[list[Request]], None],
    ) -> None:
        for request in rows:
            self._extend(request, steps)
        rows = [request for request in rows if request.status is Status.RUNNING]
        if not rows:
            return
        try:
            launch(rows)
        except Exception as error:
            runner.drop_in_flight()
            for request in rows:
                self._fail(request, error)
        self._read(runner, leave=self._in_flight)

    def _drafts(self, rows: list[Request]) -> dict[Request, list[int]]:
        """The drafts of requests that run together; none where they would take pages that others
        need."""
        if self._drafting is None:
            return {}
        drafts = self._drafting.propose(rows, self._fail)
        longest = max(map(len, drafts.values()), default=0)
        running = [request for request in rows if request.status is Status.RUNNING]
        return drafts if self._scheduler.has_room(running, 1 + longest) else {}

    def _note(
        self, drafting: Drafting, drafts: dict[Request, list[int]], before: dict[Request, int]
    ) -> None:
        """Take note of what a step brought, of requests that had so many tokens before it."""
        for request, tokens in before.items():
            draft = drafts.get(request, [])
            accepted = drafting.note(request, draft, tokens)
            self._scheduler.count(drafted_tokens=len(draft), accepted_tokens=accepted)

    def _rows(self, runner: Runner) -> list[Request]:
        return [r for r in self._scheduler.running if self._panel.key(r) == runner.key]

    def _continues(self, runner: Runner) -> bool:
        """Whether the requests in flight have another burst to come, as far as the host knows, and
        there is room for it."""
        rows = self._rows(runner)
        steps = _burst_steps(runner, rows)
        same = runner.requests_in_flight == rows
        return steps > 0 and same and self._scheduler.has_room(rows, steps)

    def _read(self, runner: Runner, leave: int = 0) -> None:
        """Read a runner's bursts but the newest ``leave``; a reward on the host leaves none."""
        while runner.bursts_in_flight > (0 if runner.on_host else leave):
            for request in runner.read():
                if request.finished:
                    self._scheduler.remove(request)
                    self._leave(request)
                else:
                    for group, text in request.texts.items():
                        self._scheduler.register(request, group, len(text.ids) - 1 - request.lag)
        rows = runner.requests_in_flight
        if rows and all(request.status is not Status.RUNNING for request in rows):
            runner.drop_in_flight()

    def _extend(self, request: Request, steps: int) -> None:
        """Pages for the next steps, taken from the youngest where none are left."""
        while request.status is Status.RUNNING and not self._scheduler.extend(request, steps):
            # A burst in flight may be the end of some requests, and one that is preempted then
            # loses nothing.
            in_flight = [r for r in self.runners.values() if r.bursts_in_flight]
            for runner in in_flight:
                self._read(runner)
            if not in_flight:
                self._leave(self._scheduler.preempt())
                self.drop_in_flight()


def _burst_steps(runner: Runner, rows: list[Request]) -> int:
    """Steps that every row has tokens left for."""
    return min(runner.steps, min((request.remaining for request in rows), default=0))
