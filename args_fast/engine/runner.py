"""A runner decodes the requests that one set of rewards judges, a burst of steps at a time."""

import math
from collections import deque
from functools import partial
from typing import Any

import torch

from args_fast.engine.batch import Batch, Shape
from args_fast.engine.burst import Burst
from args_fast.engine.graphs import StepGraphs
from args_fast.engine.request import Request, Status
from args_fast.engine.step import begin, step
from args_fast.engine.streams import SideStream
from args_fast.engine.verify import Verification
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import PagedCache, pages_for
from args_fast.models.backbone import Backbone
from args_fast.models.compact import weights_of
from args_fast.ops.backends import implementation
from args_fast.ops.schemas import SCHEMAS
from args_fast.rewards.panel import Key, Panel


class Runner:
    """Decodes requests of one key together.

    A burst is launched, and read later. While the same requests run, the device knows where each of
    them is, so the next burst may be launched before the last one is read, and the device does not
    wait for the host. Whenever requests come or leave, every burst is read first, and what the host
    knows is sent again (a few kilobytes). So requests join, leave and change rows without device
    work, and neither a row that only fills up a batch nor an earlier replay of a graph can leave
    anything in it.

    Args:
        lm, cache: the language model and its K/V.
        panel, key: the rewards, and which of them judge these requests.
        side: where rewards run while the language model looks ahead.
        rows: requests at most.
        steps: steps of a burst at most; a page or fewer.
        padded: round the batch and its page tables up to powers of two, so that few shapes occur.
        graphs: replay captured CUDA graphs.
        lookahead: the largest B * k with which the language model looks ahead.
        joined: the same in one pass with a reward that has rows of its own in every layer, after
            short prefixes (``Reward.attention_per_token``); None for that of ``lookahead``.
        eager: whether the host takes part in every step, as for a reward on the host.
    """

    def __init__(
        self,
        lm: Backbone,
        cache: PagedCache,
        panel: Panel,
        key: Key,
        side: SideStream,
        *,
        rows: int,
        steps: int,
        padded: bool,
        graphs: bool,
        lookahead: float,
        eager: bool,
        joined: float | None = None,
    ) -> None:
        self.key = key
        self._names = panel.reported(key)
        self.on_host = eager or panel.asks_host(key)
        self.steps = 1 if self.on_host else steps
        self._per_token = 0.0
        if panel.joins(key):
            (reward,) = panel.named(key)
            lookahead = (lookahead if joined is None else joined) / reward.joined_share
            self._per_token = reward.attention_per_token
        self.lookahead = lookahead if key and not eager else 0
        self.newest: Any = None  # the event at the end of everything that was launched, on CUDA
        self._lm = lm
        self._cache = cache
        self._panel = panel
        self._side = side
        self._padded = padded and not self.on_host
        self.graphs = StepGraphs(enabled=graphs and not self.on_host)
        longest = cache.k_pages.shape[1] - 1
        if lm.max_length < math.inf and panel.group_count == 1:
            longest = min(longest, pages_for(int(lm.max_length)))
        rows = _power_of_two(rows) if self._padded else rows
        self.memory = BatchMemory(
            lm.device, rows, _power_of_two(longest), lambda: self.graphs.clear()
        )
        self._shape: Shape | None = None
        self._batch: Batch | Verification | None = None
        self._bursts: deque[Burst] = deque()
        self._scheduled: list[tuple[Request, int]] = []  # what the device knows: its rows

    @property
    def bursts_in_flight(self) -> int:
        """Bursts that were launched and not read."""
        return len(self._bursts)

    @property
    def requests_in_flight(self) -> list[Request]:
        """The requests of those bursts: all are of the same."""
        return self._bursts[-1].requests if self._bursts else []

    def launch(self, requests: list[Request], steps: int) -> None:
        """Decode ``steps`` tokens for each request, whose pages have room for them. While bursts
        are in flight, the requests must be those in flight."""
        resumed = self._scheduled == [(r, r.scheduled_len) for r in requests]
        assert resumed or not self._bursts
        self._scheduled = []  # until the burst is on its way
        shape = self._shape_of(requests, steps)
        batch = self._batch_of(shape)
        assert isinstance(batch, Batch)
        batch.load(requests, steps, resumed=resumed)
        device = self._lm.device.type
        key: tuple = ()  # of a graph
        if self.graphs.enabled:
            self.graphs.bind(self._weights())
            key = shape, tuple(implementation(op, device) for op in SCHEMAS)
        if batch.reads_ahead and not resumed:
            self.graphs.run((*key, "begin"), partial(begin, batch))
        one_step = partial(step, batch, self._side)
        for _ in range(steps):
            self.graphs.run(key, one_step)
        burst = Burst(list(requests), steps, self._names, batch.fetch(), batch.errors)
        if device == "cuda":
            burst.event = self.newest = torch.cuda.Event()
            burst.event.record()
        self._bursts.append(burst)
        for request in requests:
            request.in_flight += steps
        self._scheduled = [(r, r.scheduled_len) for r in requests]

    def verify(self, requests: list[Request], drafts: list[list[int]]) -> None:
        """Decode some tokens of each request, whose pages have room for its draft and one more: the
        drafts, all of one length, as far as they are ARGS' own choice, and what comes after."""
        assert not self._bursts
        self._scheduled = []
        steps = 1 + len(drafts[0])
        batch = self._batch_of(self._shape_of(requests, steps, drafted=steps - 1))
        assert isinstance(batch, Verification)
        arrival = batch.run(requests, drafts)
        errors, counts = batch.errors, batch.counts
        self._bursts.append(
            Burst(list(requests), steps, self._names, arrival, errors, counts=counts)
        )
        for request in requests:
            request.in_flight += steps

    def read(self) -> list[Request]:
        """Wait for the oldest burst and give its requests their tokens; those that have ended or
        left since it was launched drop theirs. Returns the others."""
        burst = self._bursts.popleft()
        burst.wait()
        running = []
        for row, request in enumerate(burst.requests):
            request.in_flight -= burst.steps
            if request.status is Status.RUNNING:
                running.append(request)
                burst.deliver(row, request)
        return running

    def drop_in_flight(self) -> None:
        """Forget bursts in flight, and do not rely on what is on the device."""
        self._scheduled = []
        while self._bursts:
            burst = self._bursts.popleft()
            for request in burst.requests:
                request.in_flight -= burst.steps

    # ---- shapes --------------------------------------------------------------------------------

    def _shape_of(self, requests: list[Request], steps: int, drafted: int = 0) -> Shape:
        round_up = _power_of_two if self._padded else int
        k = max(request.k for request in requests)
        widths = {
            group: max(len(r.texts[group].ids) + r.in_flight + steps for r in requests)
            for group in requests[0].texts
        }
        return Shape(
            round_up(len(requests)),
            k,
            tuple((group, round_up(pages_for(width))) for group, width in widths.items()),
            any(request.k < k for request in requests),
            any(request.config.narrowed and request.k > 1 for request in requests),
            any(request.config.return_candidates for request in requests),
            drafted,
            self._looks_ahead(requests, round_up(len(requests)) * k) and not drafted,
        )

    def _looks_ahead(self, requests: list[Request], rows: int) -> bool:
        """The same as long as the requests are the same: by the longest that any can become."""
        longest = max(len(r.prompt) + r.config.max_new_tokens for r in requests)
        return rows * (1 + longest * self._per_token) <= self.lookahead

    def _batch_of(self, shape: Shape) -> Batch | Verification:
        if shape != self._shape or self._batch is None:
            self._batch = None  # memory may move, whether all of it can be had or not
            self.memory.reshape(shape.B, shape.k, dict(shape.pages))
            parts = shape, self.memory, self._lm, self._cache, self._panel, self.key
            if shape.drafted:
                self._batch = Verification(*parts)
            else:
                self._batch = Batch(*parts, steps=self.steps)
            self._shape = shape
        return self._batch

    def _weights(self) -> list[torch.Tensor]:
        rewards = self._panel.named(self.key)
        return [*weights_of(self._lm.model), *(p for r in rewards for p in r.weights())]


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
