"""Continuous batching: which sequence is filled, which is decoded, and who gives way to whom."""

from collections import deque
from dataclasses import dataclass

import torch

from args_fast.engine.request import Request
from args_fast.engine.runner import Runner
from args_fast.engine.streams import SideStream
from args_fast.errors import CapacityError
from args_fast.kvcache.pages import PagePool
from args_fast.kvcache.storage import PAGE_SIZE, PagedCache, pages_for
from args_fast.models.backbone import Backbone
from args_fast.rewards.classifier import BranchedClassifier

# Steps of a burst, and bursts that may be launched before the last one is read. On the CPU a look
# at the tokens costs nothing. On CUDA the host would make the device wait, so a sequence that has
# ended is noticed up to two bursts late, and the surplus is dropped.
STEPS_PER_BURST = {"cpu": 1, "cuda": 8}
UNREAD_BURSTS = {"cpu": 0, "cuda": 1}
# Prompt tokens that are stored between two bursts while others are decoding.
FILLED_PER_BURST = {"cpu": 256, "cuda": 2048}
LONGEST_PASS = 8192  # tokens: what a pass computes on its way is outside the cache's budget


@dataclass(frozen=True)
class Stats:
    """Counts since the engine began: prompt tokens asked for, those of them found in pages that
    others had filled, and sequences that had to give their pages back midway."""

    prompt_tokens: int = 0
    shared_tokens: int = 0
    preemptions: int = 0


class Scheduler:
    """Decodes any number of sequences together; each gets the tokens it would get alone.

    The rule is first come, first served:

    - Sequences are admitted strictly in the order of their arrival. One that does not fit now
      waits, and all behind it wait with it, so that many short ones cannot starve a long one.
    - One prompt is filled at a time, so the next one can share its pages. While others decode,
      only so many prompt tokens are stored between two bursts that nobody stalls.
    - When pages run out, the youngest gives its pages back and goes to the head of the queue. It
      is filled again later from its prompt and its tokens so far. The oldest always goes on, so
      everything ends.

    Pages retained for later requests are forgotten when nothing is left to do, because between
    decodes the models are the caller's, who may change them; ``keep_prefixes`` keeps them.

    Args:
        lm, rm: the models.
        pages: of each cache.
        rows: sequences decoded together at most.
        graphs: replay captured CUDA graphs (on CUDA only).
        lookahead: the largest B * k with which the language model looks ahead.
        padded: as for Runner; None where graphs want it.
        steps, unread, fill: in place of the tables above.
    """

    def __init__(
        self,
        lm: Backbone,
        rm: BranchedClassifier,
        *,
        pages: int,
        rows: int,
        graphs: bool = True,
        lookahead: float = 0,
        padded: bool | None = None,
        steps: int | None = None,
        unread: int | None = None,
        fill: int | None = None,
    ) -> None:
        device = lm.device.type
        self.pool = PagePool(pages)
        self.rows = rows
        self.keep_prefixes = False
        self.served = Stats()
        self._lm = lm
        self._rm = rm
        self.caches = PagedCache(lm.layout, pages), PagedCache(rm.layout, pages)
        self._beside = SideStream(lm.device, rm.device)
        self._steps = steps or STEPS_PER_BURST[device]
        self._unread = UNREAD_BURSTS[device] if unread is None else unread
        self._fill_budget = fill or FILLED_PER_BURST[device]
        # A graph is of one device.
        graphs = graphs and device == "cuda" and lm.device == rm.device
        self.runners = [
            Runner(
                lm,
                rm,
                self.caches,
                self._beside,
                guided=guided,
                rows=rows,
                steps=self._steps,
                padded=graphs if padded is None else padded,
                graphs=graphs,
                lookahead=lookahead,
            )
            for guided in (True, False)
        ]
        self._waiting: deque[Request] = deque()
        self._filling: Request | None = None
        # In the order of their arrival; then the one that is filled, then those that wait.
        self._running: list[Request] = []

    # ---- in and out ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._filling or self._running)

    @property
    def waiting(self) -> int:
        """Sequences that are not admitted yet."""
        return len(self._waiting)

    def check(self, sequence: Request) -> None:
        """Raises CapacityError where a sequence would not fit if it were alone."""
        if pages_for(sequence.longest) > self.pool.size:
            fits = self.pool.size * PAGE_SIZE
            room = fits - len(sequence.prompt)
            fewer = f", set max_new_tokens to at most {room}" if room > 0 else ""
            raise CapacityError(
                f"the prompt has {len(sequence.prompt)} tokens and "
                f"{sequence.config.max_new_tokens} new ones are asked for, {sequence.longest} "
                f"together; the cache holds {fits}. Shorten the prompt{fewer}, or give the cache "
                "more memory (memory_fraction, cache_bytes)."
            )

    def submit(self, sequence: Request) -> None:
        """Let a sequence wait for its turn. Raises CapacityError if that would never come."""
        self.check(sequence)
        self._waiting.append(sequence)

    def cancel(self, sequence: Request) -> None:
        """Forget a sequence, wherever it is; its pages are free at once."""
        if sequence is self._filling:
            self._filling = None
        elif sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._release(sequence)
        self._rest()

    @torch.inference_mode()
    def step(self) -> None:
        """Store some of the prompts, then decode one burst of every runner. Sequences that are over
        have left.

        Raises:
            Exception: what a model raised. Every sequence has it as its error, and has left.
        """
        try:
            with torch.cuda.device_of(self.caches[0].k_pages):  # nothing on the CPU
                for runner in self.runners:
                    if runner.newest is not None:
                        self._beside.after(runner.newest)
                self._fill()
                for runner in self.runners:
                    self._decode(runner)
        except BaseException as error:
            self._abandon(error)
            raise
        self._rest()

    # ---- prompts -------------------------------------------------------------------------------

    def _fill(self) -> None:
        budget = self._fill_budget
        while budget > 0 and (self._filling or self._admit()):
            sequence = self._filling
            assert sequence is not None
            start = sequence.filled
            # Nobody stalls where nobody decodes, and one long pass is fastest.
            end = min(len(sequence.ids), start + (budget if self._running else LONGEST_PASS))
            self._store(sequence, start, end)
            budget -= end - start
            if end == len(sequence.ids):
                self._filling = None
                self._running.append(sequence)

    def _admit(self) -> bool:
        """Give the head of the queue its pages, if there are enough."""
        if not self._waiting or len(self._running) >= self.rows:
            return False
        sequence = self._waiting[0]
        length = len(sequence.ids)
        steps = min(self._steps, sequence.remaining)
        # The last token has yet to go through the language model, so its row is written still.
        root = -1 if sequence.guided else -2
        shared, prefix = self.pool.match_prefix(sequence.ids, root, (length - 1) // PAGE_SIZE)
        wanted = pages_for(length + steps) - len(shared)
        # And one page for each that will need more, or it would soon have to give way to them.
        growing = sum(len(other.pages) < pages_for(other.longest) for other in self._running)
        if wanted + growing > self.pool.available:
            self.pool.release(shared)
            return False
        self._waiting.popleft()
        self._filling = sequence
        sequence.pages = shared + self.pool.allocate(wanted)
        sequence.filled = len(shared) * PAGE_SIZE
        sequence.entered = len(shared), prefix
        self._count(prompt_tokens=length, shared_tokens=sequence.filled)
        return True

    def _store(self, sequence: Request, start: int, end: int) -> None:
        """Run the models over ids start ... end - 1. The language model does not see the last one
        yet: every step begins with it."""
        ids, pages = sequence.ids, sequence.pages
        if sequence.guided:
            with self._beside():
                self._rm.prefill(self.caches[1], ids[start:end], pages, start)
        self._lm.prefill(self.caches[0], ids[start : min(end, len(ids) - 1)], pages, start)
        self._beside.join()
        sequence.filled = end
        self._enter(sequence, min(end, len(ids) - 1))

    def _enter(self, sequence: Request, written: int) -> None:
        """Let others find the pages that are full."""
        count, prefix = sequence.entered
        for i in range(count, written // PAGE_SIZE):
            tokens = sequence.ids[i * PAGE_SIZE : (i + 1) * PAGE_SIZE]
            prefix = self.pool.register(sequence.pages[i], prefix, tokens)
            sequence.entered = i + 1, prefix

    # ---- tokens --------------------------------------------------------------------------------

    def _decode(self, runner: Runner) -> None:
        """Launch a burst, and read those before it."""
        if not self._goes_on(runner):
            self._read(runner)
        rows = self._rows(runner)
        steps = self._burst_of(rows)
        for sequence in rows:
            self._extend(sequence, steps)
        rows = [s for s in rows if s.pages]
        if rows:
            runner.launch(rows, steps)
            self._read(runner, but=self._unread)

    def _rows(self, runner: Runner) -> list[Request]:
        return [s for s in self._running if s.guided == runner.guided]

    def _burst_of(self, rows: list[Request]) -> int:
        """Steps that none of them has too few tokens left for."""
        return min(self._steps, min((s.remaining for s in rows), default=0))

    def _goes_on(self, runner: Runner) -> bool:
        """Whether the sequences under way have another burst in front of them, as far as the host
        knows, and there is room for it."""
        rows = self._rows(runner)
        steps = self._burst_of(rows)
        wanted = sum(max(0, pages_for(s.reached + steps) - len(s.pages)) for s in rows)
        return steps > 0 and runner.under_way == rows and wanted <= self.pool.available

    def _read(self, runner: Runner, but: int = 0) -> None:
        """Read a runner's bursts but the newest so many."""
        while runner.unread > but:
            for sequence in runner.read():
                if sequence.error is None:
                    self._enter(sequence, len(sequence.ids) - 1)
                if sequence.over:
                    self._running.remove(sequence)
                    self._release(sequence)
        if runner.unread and not any(sequence.pages for sequence in runner.under_way):
            runner.forget()

    def _extend(self, sequence: Request, steps: int) -> None:
        """Pages for the next steps, taken from the youngest where none are left."""
        while sequence.pages:
            wanted = pages_for(sequence.reached + steps) - len(sequence.pages)
            if wanted <= self.pool.available:
                sequence.pages += self.pool.allocate(max(0, wanted))
                return
            # What is unread may be the end of some, and whoever gives way loses nothing then.
            unread = [runner for runner in self.runners if runner.unread]
            for runner in unread:
                self._read(runner)
            if not unread:
                self._preempt(self._filling or self._running[-1])

    def _preempt(self, sequence: Request) -> None:
        if sequence is self._filling:
            self._filling = None
        else:
            self._running.remove(sequence)
        self._release(sequence)
        for runner in self.runners:
            runner.forget()
        self._waiting.appendleft(sequence)
        self._count(preemptions=1)

    # ---- pages ---------------------------------------------------------------------------------

    def _release(self, sequence: Request) -> None:
        # What a broken sequence computed may be broken too.
        self.pool.release(sequence.pages, retain=sequence.error is None)
        sequence.pages = []

    def _rest(self) -> None:
        if not self.busy and not self.keep_prefixes:
            self.pool.evict_all()

    def _abandon(self, error: BaseException) -> None:
        everyone = [*self._running, *self._waiting]
        if self._filling:
            everyone.append(self._filling)
        self._running, self._filling = [], None
        self._waiting.clear()
        for runner in self.runners:
            runner.forget()
        for sequence in everyone:
            sequence.error = error
            self._release(sequence)
        self.pool.evict_all()

    def _count(self, prompt_tokens: int = 0, shared_tokens: int = 0, preemptions: int = 0) -> None:
        self.served = Stats(
            self.served.prompt_tokens + prompt_tokens,
            self.served.shared_tokens + shared_tokens,
            self.served.preemptions + preemptions,
        )
