"""A lane decodes sequences of one kind together, a burst of steps at a time."""

from collections.abc import Sequence as Many
from functools import partial
from math import prod

import torch
from torch import Tensor

from args_fast.engine.backbone import Backbone
from args_fast.engine.cache import SCRATCH_PAGE, PagedCache, pages_for
from args_fast.engine.graphs import StepGraphs
from args_fast.engine.sequence import Sequence
from args_fast.engine.step import Batch, step
from args_fast.engine.tail import Tail
from args_fast.errors import NonFiniteError
from args_fast.ops.backends import implementation
from args_fast.ops.schemas import SCHEMAS
from args_fast.rewards.classifier import BranchedClassifier

Shape = tuple[int, int, int, bool]  # B, k, P, whether sequences have fewer than k candidates


class Lane:
    """Sequences that all consult the reward model, or all do not.

    Between bursts the device knows nothing of a sequence but the keys and values in its pages; each
    burst begins by sending the rest (a few kilobytes), which the host knows anyway. So sequences
    join, leave and change places without any device work, and a row that only fills up a batch, or
    what a captured graph did before, can leave nothing behind.

    Args:
        lm, rm: the models; rm is not run unless ``guided``.
        caches: of the two.
        guided: whether these sequences consult the reward model.
        rows: sequences at most.
        steps: steps of a burst at most; a page or fewer.
        padded: round the batch and its page table up to powers of two, so that few shapes occur.
        graphs: replay captured CUDA graphs.
    """

    def __init__(
        self,
        lm: Backbone,
        rm: BranchedClassifier,
        caches: tuple[PagedCache, PagedCache],
        *,
        guided: bool,
        rows: int,
        steps: int,
        padded: bool,
        graphs: bool,
    ) -> None:
        self.guided = guided
        self.steps = steps
        self._lm = lm
        self._rm = rm
        self._caches = caches
        self._rows = rows
        self._padded = padded
        self._graphs = StepGraphs(enabled=graphs)
        self._memory: dict[str, Tensor] = {}
        self._shape: Shape | None = None
        self._batch: Batch | None = None

    def burst(self, sequences: Many[Sequence], steps: int) -> None:
        """Decode up to ``steps`` tokens for each. Their pages hold that many more."""
        self._graphs.bind(p for model in (self._lm, self._rm) for p in model.model.parameters())
        shape, batch = self._load(sequences, steps)
        device = self._lm.device.type
        backends = tuple(implementation(op, device) for op in SCHEMAS)
        call = partial(step, self._lm, self._rm, batch)
        for _ in range(steps):
            self._graphs.run((shape, backends), call)
        tokens, numbers = batch.tokens.tolist(), batch.numbers.tolist()
        for sequence, chosen, values in zip(sequences, tokens, numbers, strict=False):
            for token, (logprob, reward, score) in zip(chosen[:steps], values, strict=False):
                sequence.error = _fault(logprob, score, self.guided)
                if sequence.error is not None:
                    break
                sequence.push(token, logprob, reward, score)

    # ---- what is sent --------------------------------------------------------------------------

    def _load(self, sequences: Many[Sequence], steps: int) -> tuple[Shape, Batch]:
        B = len(sequences)
        k = max(sequence.candidates for sequence in sequences)
        P = max(pages_for(len(sequence.ids) + steps) for sequence in sequences)
        mixed = any(sequence.candidates < k for sequence in sequences)
        if self._padded:
            B, P = _power_of_two(B), _power_of_two(P)
        shape = (B, k, P, mixed)
        if shape != self._shape or self._batch is None:
            self._batch = self._make(shape)
            self._shape = shape
        batch = self._batch

        def send(target: Tensor, rows: list, filler: object) -> None:
            padding = [filler] * (B - len(rows))
            target.copy_(torch.tensor(rows + padding, dtype=target.dtype), non_blocking=True)

        # The language model has yet to see the last token; the reward model's candidates stand
        # behind it.
        send(batch.token, [[s.ids[-1]] for s in sequences], [0])
        send(batch.lm.lengths, [len(s.ids) - 1 for s in sequences], 0)
        table = [(s.pages + [SCRATCH_PAGE] * P)[:P] for s in sequences]
        send(batch.lm.page_table, table, [SCRATCH_PAGE] * P)
        if batch.rm is not None:
            send(batch.rm.lengths, [len(s.ids) for s in sequences], 0)
        send(batch.w, [float(s.config.w) for s in sequences], 0.0)
        send(batch.temperature, [s.config.temperature or 1.0 for s in sequences], 1.0)
        if batch.places is not None:
            # In a place that a sequence does not have stands its first candidate again: it gives
            # the same reward, so no fault of its own, and its noise keeps it from being chosen.
            places = [[j if j < s.candidates else 0 for j in range(k)] for s in sequences]
            send(batch.places, places, [0] * k)
        noise = torch.zeros(B, self.steps, k)
        for row, sequence in zip(noise, sequences, strict=False):
            row[:, sequence.candidates :] = -torch.inf
            row[:steps, : sequence.candidates] = sequence.noise(steps)
        batch.noise.copy_(noise, non_blocking=True)
        batch.column.zero_()
        return shape, batch

    # ---- where it goes -------------------------------------------------------------------------

    def _make(self, shape: Shape) -> Batch:
        B, k, P, mixed = shape
        f32, i64, i32 = torch.float32, torch.int64, torch.int32
        table = self._view("table", i32, B, P)

        def tail(name: str, cache: PagedCache, rows: int) -> Tail:
            at = cache.layout
            k, v = (
                self._view(
                    name + kind, at.dtype, B, at.layers, rows, at.kv_heads, at.head_size
                ).view(at.layers, B, rows, at.kv_heads, at.head_size)
                for kind in (" keys", " values")
            )
            return Tail(cache, table, self._view(name + " lengths", i32, B), k, v)

        return Batch(
            token=self._view("token", i64, B, 1),
            lm=tail("lm", self._caches[0], 1),
            rm=tail("rm", self._caches[1], k) if self.guided else None,
            first=torch.zeros(B, dtype=i64, device=self._lm.device),
            w=self._view("w", f32, B),
            temperature=self._view("temperature", f32, B),
            places=self._view("places", i64, B, k) if mixed else None,
            noise=self._view("noise", f32, B, self.steps, k),
            column=self._view("column", i64, 1),
            tokens=self._view("tokens", i64, B, self.steps),
            numbers=self._view("numbers", f32, B, self.steps, 3),
        )

    def _view(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """The first bytes of a piece of memory that is made once, for the largest batch; only a
        larger k or a longer page table than ever before moves it."""
        size = prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            largest = prod(shape[1:]) * (_power_of_two(self._rows) if self._padded else self._rows)
            self._graphs.clear()
            self._memory[name] = torch.empty(largest, dtype=dtype, device=self._lm.device)
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
