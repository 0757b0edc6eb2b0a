"""A runner decodes sequences of one kind together, a burst of steps at a time."""

import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from args_fast.engine.graphs import StepGraphs
from args_fast.engine.request import Request
from args_fast.engine.step import Batch, Lookahead, begin_lookahead, step
from args_fast.engine.streams import SideStream
from args_fast.errors import NonFiniteError
from args_fast.kvcache.storage import SCRATCH_PAGE, CacheLayout, PagedCache, pages_for
from args_fast.kvcache.transfer import fetch, send_into
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches
from args_fast.ops.backends import implementation
from args_fast.ops.schemas import SCHEMAS
from args_fast.rewards.classifier import BranchedClassifier

Shape = tuple[int, int, int, bool]  # B, k, P, whether sequences have fewer than k candidates


@dataclass
class Burst:
    """Steps that the device was asked for, and whose tokens the host has not read yet.

    Attributes:
        sequences: one per row.
        steps: of each.
        tokens, numbers: on the host, where they are once ``arrived`` is over (None: at once).
    """

    sequences: list[Request]
    steps: int
    tokens: Tensor
    numbers: Tensor
    arrived: Any = None


class Runner:
    """Sequences that all consult the reward model, or all do not.

    A burst is launched, and read later. While the same sequences go on, the device knows where each
    of them is, so the next burst may be launched before the last one is read, and the device does
    not wait for the host. Whenever others come or go, all is read first, and what the host knows is
    sent again (a few kilobytes). So sequences join, leave and change places without any device
    work, and a row that only fills up a batch, or what a captured graph did before, can leave
    nothing behind.

    Args:
        lm, rm: the models; rm is not run unless ``guided``.
        caches: of the two.
        beside: where rm runs while lm looks ahead.
        guided: whether these sequences consult the reward model.
        rows: sequences at most.
        steps: steps of a burst at most; a page or fewer.
        padded: round the batch and its page table up to powers of two, so that few shapes occur.
        graphs: replay captured CUDA graphs.
        lookahead: the largest B * k with which the language model looks ahead.
    """

    def __init__(
        self,
        lm: Backbone,
        rm: BranchedClassifier,
        caches: tuple[PagedCache, PagedCache],
        beside: SideStream,
        *,
        guided: bool,
        rows: int,
        steps: int,
        padded: bool,
        graphs: bool,
        lookahead: float,
    ) -> None:
        self.guided = guided
        self.steps = steps
        self._lm = lm
        self._rm = rm
        self._caches = caches
        self._beside = beside
        self._rows = rows
        self._padded = padded
        self._lookahead = lookahead if guided else 0
        # Pages of the longest sequence that fits, as wide as page tables come.
        self._longest = caches[0].k_pages.shape[1] - 1
        if lm.max_length < math.inf:
            self._longest = min(self._longest, pages_for(int(lm.max_length)))
        self._longest = _power_of_two(self._longest)
        self._graphs = StepGraphs(enabled=graphs)
        self._memory: dict[str, Tensor] = {}
        self._shape: Shape | None = None
        self._batch: Batch | None = None
        self._bursts: deque[Burst] = deque()
        self.newest: Any = None  # the event at the end of all that was launched, on CUDA
        self._reached: list[tuple[Request, int]] = []  # by the rows that are on the device

    @property
    def unread(self) -> int:
        """Bursts that were launched and not read."""
        return len(self._bursts)

    @property
    def under_way(self) -> list[Request]:
        """The sequences of those bursts: all are of the same."""
        return self._bursts[-1].sequences if self._bursts else []

    def launch(self, sequences: list[Request], steps: int) -> None:
        """Decode ``steps`` tokens for each, whose pages hold that many more. While bursts are
        unread, the sequences must be those under way."""
        goes_on = self._reached == [(s, s.reached) for s in sequences]
        assert goes_on or not self._bursts
        self._graphs.bind(p for model in (self._lm, self._rm) for p in model.model.parameters())
        shape, batch = self._load(sequences, steps, goes_on)
        device = self._lm.device.type
        key = shape, tuple(implementation(op, device) for op in SCHEMAS)
        if batch.ahead is not None and not goes_on:
            self._graphs.run((*key, "begin"), partial(begin_lookahead, self._lm, batch))
        one = partial(step, self._lm, self._rm, batch, self._beside)
        for _ in range(steps):
            self._graphs.run(key, one)
        burst = Burst(list(sequences), steps, fetch(batch.tokens), fetch(batch.numbers))
        if self._lm.device.type == "cuda":
            burst.arrived = self.newest = torch.cuda.Event()
            burst.arrived.record()
        self._bursts.append(burst)
        for sequence in sequences:
            sequence.unread += steps
        self._reached = [(s, s.reached) for s in sequences]

    def read(self) -> list[Request]:
        """Wait for the oldest burst, and give its sequences their tokens; those that have ended or
        were called off since it was launched drop theirs. Returns the others."""
        burst = self._bursts.popleft()
        if burst.arrived is not None:
            burst.arrived.synchronize()
        tokens, numbers = burst.tokens.tolist(), burst.numbers.tolist()
        there = []
        for sequence, chosen, values in zip(burst.sequences, tokens, numbers, strict=False):
            sequence.unread -= burst.steps
            if not sequence.pages:
                continue
            there.append(sequence)
            for token, (logprob, reward, score) in zip(chosen[: burst.steps], values, strict=False):
                if sequence.over:
                    break
                sequence.error = _fault(logprob, score, self.guided)
                if sequence.error is None:
                    sequence.push(token, logprob, reward, score)
        return there

    def forget(self) -> None:
        """Nobody wants what is unread, and what is on the device may not be so any more."""
        self._reached = []
        while self._bursts:
            burst = self._bursts.popleft()
            for sequence in burst.sequences:
                sequence.unread -= burst.steps

    # ---- what is sent --------------------------------------------------------------------------

    def _load(self, sequences: list[Request], steps: int, goes_on: bool) -> tuple[Shape, Batch]:
        B = len(sequences)
        k = max(sequence.candidates for sequence in sequences)
        P = max(pages_for(sequence.reached + steps) for sequence in sequences)
        mixed = any(sequence.candidates < k for sequence in sequences)
        if self._padded:
            B, P = _power_of_two(B), _power_of_two(P)
        shape = (B, k, P, mixed)
        if shape != self._shape or self._batch is None:
            self._batch = None  # memory may have moved, whether all of it could be had or not
            self._batch = self._make(shape)
            self._shape = shape
        batch = self._batch

        def send(target: Tensor, rows: list, filler: object) -> None:
            send_into(target, torch.tensor(rows + [filler] * (B - len(rows)), dtype=target.dtype))

        table = [(s.pages + [SCRATCH_PAGE] * P)[:P] for s in sequences]
        tails = (tail for tail in (batch.lm, batch.rm) if tail is not None)
        for target in {tail.cache.layout.device: tail.page_table for tail in tails}.values():
            send(target, table, [SCRATCH_PAGE] * P)
        batch.column.zero_()
        if goes_on and all(s.config.temperature is None for s in sequences):
            return shape, batch
        noise = torch.zeros(B, self.steps, k)
        for row, sequence in zip(noise, sequences, strict=False):
            row[:, sequence.candidates :] = -torch.inf
            row[:steps, : sequence.candidates] = sequence.noise(steps)
        send_into(batch.noise, noise)
        if goes_on:
            return shape, batch

        # The language model has yet to see the last token; the reward model's candidates stand
        # behind it.
        send(batch.token, [[s.ids[-1]] for s in sequences], [0])
        send(batch.lm.lengths, [len(s.ids) - 1 for s in sequences], 0)
        if batch.rm is not None:
            send(batch.rm.lengths, [len(s.ids) for s in sequences], 0)
        send(batch.w, [float(s.config.w) for s in sequences], 0.0)
        send(batch.temperature, [s.config.temperature or 1.0 for s in sequences], 1.0)
        if batch.places is not None:
            # In a place that a sequence does not have stands its first candidate again: it gives
            # the same reward, so no fault of its own, and its noise keeps it from being chosen.
            places = [[j if j < s.candidates else 0 for j in range(k)] for s in sequences]
            send(batch.places, places, [0] * k)
        return shape, batch

    # ---- where it goes -------------------------------------------------------------------------

    def _make(self, shape: Shape) -> Batch:
        B, k, P, mixed = shape
        f32, i64, i32 = torch.float32, torch.int64, torch.int32
        lm, rm = self._caches

        def tail(name: str, cache: PagedCache, rows: int, like: Branches | None = None) -> Branches:
            at = cache.layout
            k, v = (
                self._view(
                    name + kind, at.dtype, B, at.layers, rows, at.kv_heads, at.head_size, at=at
                ).view(at.layers, B, rows, at.kv_heads, at.head_size)
                for kind in (" keys", " values")
            )
            lengths = like.lengths if like else self._view(name + " lengths", i32, B, at=at)
            table = self._view(f"{at.device} table", i32, B, P, at=at, row=self._longest)
            return Branches(cache, table, lengths, k, v)

        last = tail("lm", lm, 1)
        ahead = None
        if B * k <= self._lookahead:
            ahead = Lookahead(
                logprobs=self._view("logprobs", f32, B, k),
                ids=self._view("ids", i64, B, k),
                tail=tail("lm candidates'", lm, k, like=last),
            )
        return Batch(
            token=self._view("token", i64, B, 1),
            lm=last,
            ahead=ahead,
            rm=tail("rm", rm, k) if self.guided else None,
            first=torch.zeros(B, dtype=i64, device=self._lm.device),
            w=self._view("w", f32, B),
            temperature=self._view("temperature", f32, B),
            places=self._view("places", i64, B, k) if mixed else None,
            noise=self._view("noise", f32, B, self.steps, k),
            column=self._view("column", i64, 1),
            tokens=self._view("tokens", i64, B, self.steps),
            numbers=self._view("numbers", f32, B, self.steps, 3),
        )

    def _view(
        self,
        name: str,
        dtype: torch.dtype,
        *shape: int,
        at: CacheLayout | None = None,
        row: int = 0,
    ) -> Tensor:
        """The first bytes of a piece of memory that is made once, for the largest batch and rows of
        ``row`` elements; only a larger k than ever before moves it. It is where the cache of layout
        ``at`` is, or with the language model."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            rows = _power_of_two(self._rows) if self._padded else self._rows
            largest = rows * max(row, math.prod(shape[1:]))
            self._graphs.clear()
            device = at.device if at else self._lm.device
            self._memory[name] = torch.empty(largest, dtype=dtype, device=device)
        return self._memory[name][:size].view(shape)


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _fault(logprob: float, score: float, guided: bool) -> NonFiniteError | None:
    """The ops mark a broken row with NaN, so the check costs the device nothing."""
    if logprob != logprob:
        return NonFiniteError(
            "the language model's logits hold a NaN or +inf, or none above -inf: there is no token "
            "to choose. Check its weights, or use dtype='float32' (float16 overflows easily)."
        )
    if guided and score != score:
        return NonFiniteError(
            "the reward model gave a candidate a NaN or infinite reward: no choice by it means "
            "anything. Check its weights, or use dtype='float32' (float16 overflows easily)."
        )
    return None
