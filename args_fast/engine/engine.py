"""The seam that every front end stands on: requests in, tokens out. Ids only.

while something runs:
    admit what fits; fill the next prompt
    propose k, judge k, choose one, commit it     (step.py, in bursts)
    read what the last burst said
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from args_fast.drafting.base import Drafts
from args_fast.engine.bursts import BURSTS_IN_FLIGHT, STEPS_PER_BURST, Bursts
from args_fast.engine.capacity import CacheUse, cache_use
from args_fast.engine.drafting import Drafting
from args_fast.engine.fill import Filler
from args_fast.engine.ownership import Ownership
from args_fast.engine.request import Request, Status
from args_fast.engine.runner import Runner
from args_fast.engine.scheduler import Scheduler, Stats
from args_fast.engine.streams import SideStream
from args_fast.kvcache.pages import PagedText, PagePool
from args_fast.kvcache.storage import PagedCache
from args_fast.models.backbone import Backbone, check_eval, check_length
from args_fast.models.inference import inference_mode
from args_fast.models.score import prompt_logprobs
from args_fast.rewards.base import LM_GROUP, Reward
from args_fast.rewards.panel import Panel


class Engine:
    """Decodes any number of requests together; each gets the tokens it would get alone.

    Safe to use from several threads: they take turns, step by step, and each finds its requests
    advanced. While the ``ownership`` has an owner, only that thread may use it. Pages kept for
    later requests are evicted when nothing is left to do, as the caller may change the models
    between decodes; ``hold_prefixes`` keeps them.

    Args:
        lm: the language model.
        rewards: by name; attached to the language model already.
        pages: of each cache.
        rows: requests decoded together at most.
        graphs: replay captured CUDA graphs (on one CUDA device only).
        lookahead, joined, padded: as for Runner; padded None where graphs want it.
        eager: one step at a time, without graphs or lookahead: requests have ``process_logits``.
        drafts: whose drafts are verified, one step at a time; with it there is no lookahead.
        steps, in_flight: in place of the tables of ``bursts.py``; fill: of ``fill.py``.
    """

    def __init__(
        self,
        lm: Backbone,
        rewards: Mapping[str, Reward],
        *,
        pages: int,
        rows: int,
        graphs: bool = True,
        lookahead: float = 0,
        joined: float | None = None,
        padded: bool | None = None,
        eager: bool = False,
        drafts: Drafts | None = None,
        steps: int | None = None,
        in_flight: int | None = None,
        fill: int | None = None,
    ) -> None:
        device = lm.device.type
        self.lm, self.panel = lm, Panel(rewards)
        self.cache = PagedCache(lm.layout, pages)
        self.panel.allocate(pages, lm.device)
        self.ownership = Ownership()
        self.hold_prefixes = False
        self._drafting = None if drafts is None else Drafting(drafts, lm, self.panel)
        devices = [reward.device for reward in rewards.values()]
        self._side = SideStream(lm.device, devices)
        graphs = graphs and device == "cuda" and set(devices) <= {lm.device}
        if drafts is not None:  # the host drafts after every token
            graphs, padded, steps, in_flight, lookahead, joined = False, False, 1, 0, 0, 0
        steps = steps or STEPS_PER_BURST[device]
        ways: Any = {"rows": rows, "steps": steps, "lookahead": lookahead, "joined": joined}
        ways |= {"padded": graphs if padded is None else padded, "graphs": graphs, "eager": eager}
        pools = [PagePool(pages) for _ in range(self.panel.group_count)]
        self.scheduler = Scheduler(pools, rows=rows, steps=steps, root_of=self.panel.root)
        self.bursts = Bursts(
            self.panel,
            self.scheduler,
            make_runner=partial(Runner, lm, self.cache, self.panel, side=self._side, **ways),
            in_flight=BURSTS_IN_FLIGHT[device] if in_flight is None else in_flight,
            fail=self._fail,
            leave=self._close,
            drafting=self._drafting,
        )
        self.scheduler.stats = Stats(unknown_ids=self.panel.count_unknown_ids())
        self._filler = Filler(lm, self.cache, self.panel, self._side, fill)

    # ---- in and out ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return self.scheduler.busy

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self.scheduler.waiting)

    @property
    def stats(self) -> Stats:
        return self.scheduler.stats

    @property
    def pool(self) -> PagePool:
        """The pages of the language model's cache group."""
        return self.scheduler.pools[LM_GROUP]

    @property
    def caches(self) -> list[PagedCache]:
        """The K/V of the language model, then of each reward that has any."""
        return [self.cache, *(store.cache for store in self.panel.stores.values())]

    @property
    def cache_use(self) -> CacheUse:
        """How much fits, how much is in use, and how much of the prompts was shared."""
        return cache_use(self.pool, self.caches, self.stats)

    def check(self, request: Request) -> None:
        """Raises ArgsError where a request could not be decoded to its end: before any work."""
        new = request.config.max_new_tokens
        check_eval(self.lm)
        check_length(self.lm, len(request.prompt), new)
        for name in request.weights:
            reward = self.panel.rewards[name]
            reward.check(request, new)
            if reward.own_ids:
                request.texts[self.panel.groups[name]] = PagedText(reward.text(request))
        self.scheduler.check(request)

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn. Raises what ``check`` raises."""
        with self.ownership.using():
            self.check(request)
            self.scheduler.submit(request)

    def cancel(self, request: Request) -> None:
        """Forget a request, wherever it is; its pages are free at once."""
        with self.ownership.lock:
            if not request.finished:
                request.status = Status.CANCELLED
                self.scheduler.remove(request)
                self._close(request)
                self._evict_if_idle()

    def pause(self, request: Request) -> None:
        """Take a request out, with what it has so far; ``submit`` resumes it."""
        with self.ownership.using():
            if request.status in (Status.WAITING, Status.FILLING, Status.RUNNING):
                self.scheduler.remove(request)
                self._close(request)
                self.bursts.drop_in_flight()
                request.status = Status.CREATED

    @inference_mode()
    def step(self) -> None:
        """Store some of the prompts, then decode one burst of every runner. Requests that are
        finished have left. An exception of a model or a reward ends the requests that it concerns
        and is their ``error``."""
        with self.ownership.using():
            try:
                with torch.cuda.device_of(self.cache.k_pages):  # nothing on the CPU
                    for event in self.bursts.newest:
                        self._side.after(event)
                    self._filler.fill(self.scheduler, self._fail)
                    self.bursts.decode()
            except BaseException as error:  # Ctrl-C, or a fault of the engine itself
                self._abandon(error)
                raise
            self._evict_if_idle()

    @inference_mode()
    def score(self, ids: Sequence[int]) -> list[float]:
        """log p(ids[i] | ids[:i]) by the language model, NaN for the first."""
        with self.ownership.using():
            check_length(self.lm, len(ids), 0)
            return prompt_logprobs(self.lm, list(ids))

    @inference_mode()
    def rewards_along(
        self, request: Request, continuation: Sequence[int], *, at_end: bool = False
    ) -> list[float]:
        """As ``Panel.rewards_along``."""
        with self.ownership.using():
            check_length(self.lm, len(request.prompt), len(continuation))
            return self.panel.rewards_along(request, continuation, at_end=at_end)

    # ---- ends ----------------------------------------------------------------------------------

    def _fail(self, request: Request, error: BaseException) -> None:
        request.fail(error)
        self.scheduler.remove(request)
        self._close(request)

    def _close(self, request: Request) -> None:
        for reward in self.panel.rewards_of(request):
            reward.close(request)
        if self._drafting is not None:
            self._drafting.close(request)

    def _evict_if_idle(self) -> None:
        if not self.busy and not self.hold_prefixes:
            self.scheduler.evict_all()

    def _abandon(self, error: BaseException) -> None:
        self.bursts.drop_in_flight()
        for request in self.scheduler.everyone():
            self._fail(request, error)
        self.scheduler.evict_all()
