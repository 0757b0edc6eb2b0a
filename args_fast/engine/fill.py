"""Prompts: stored by every reader of a request, in pieces that do not stall those that decode."""

from collections.abc import Callable

from args_fast.engine.request import Request
from args_fast.engine.scheduler import Scheduler
from args_fast.engine.streams import SideStream
from args_fast.kvcache.pages import PagedText
from args_fast.kvcache.storage import PagedCache
from args_fast.models.backbone import Backbone
from args_fast.rewards.base import LM_GROUP
from args_fast.rewards.panel import Panel

# Prompt tokens that are stored between two bursts while others decode.
FILLED_PER_BURST = {"cpu": 256, "cuda": 2048}
LONGEST_PASS = 8192  # tokens: what a pass computes on its way is outside the cache's budget


class Filler:
    """Stores prompts, one request at a time.

    Args:
        lm, cache: the language model and its K/V.
        panel: the rewards.
        side: where rewards' prompts are filled next to the language model's.
        budget: prompt tokens between two bursts while others decode.
    """

    def __init__(
        self,
        lm: Backbone,
        cache: PagedCache,
        panel: Panel,
        side: SideStream,
        budget: int | None,
    ) -> None:
        self._lm = lm
        self._cache = cache
        self._panel = panel
        self._side = side
        self._budget = budget or FILLED_PER_BURST[lm.device.type]

    def fill(self, scheduler: Scheduler, failed: Callable[[Request, Exception], None]) -> None:
        """Admit requests and store their prompts, as far as the budget goes. An exception ends the
        request that it came from, through ``failed``."""
        budget = self._budget
        while budget > 0 and (request := scheduler.filling or self._admit(scheduler, failed)):
            # Nothing stalls where no request decodes, and one long pass is fastest.
            piece = budget if scheduler.running else LONGEST_PASS
            try:
                budget -= self._store(scheduler, request, piece)
            except Exception as error:
                failed(request, error)
                continue
            if all(text.cached_tokens == len(text.ids) for text in request.texts.values()):
                scheduler.start(request)

    def _admit(
        self, scheduler: Scheduler, failed: Callable[[Request, Exception], None]
    ) -> Request | None:
        request = scheduler.admit()
        if request is None:
            return None
        try:
            for reward in self._panel.rewards_of(request):
                reward.open(request)
        except Exception as error:
            failed(request, error)
            return self._admit(scheduler, failed)
        return request

    def _store(self, scheduler: Scheduler, request: Request, piece: int) -> int:
        """Store up to ``piece`` ids of the first text that is not stored yet. Returns how many."""
        group, text = next(
            (group, text)
            for group, text in request.texts.items()
            if text.cached_tokens < len(text.ids)
        )
        start = text.cached_tokens
        end = min(len(text.ids), start + piece)
        readers = [name for name in request.weights if self._panel.groups.get(name) == group]
        joined = self._store_for_both(readers, text, start, end) if group == LM_GROUP else None
        with self._side():
            for name in readers:
                if name != joined:
                    self._panel.rewards[name].fill(self._panel.stores[name], text, start, end)
        if group == LM_GROUP and joined is None:
            self._store_for_lm(text, start, end)
        self._side.join()
        text.cached_tokens = end
        scheduler.register(request, group, min(end, len(text.ids) - 1))
        return end - start

    def _store_for_both(
        self, readers: list[str], text: PagedText, start: int, end: int
    ) -> str | None:
        """Store ids for the language model and one reward in one pass; returns the reward's name.
        The row of the last id, which the language model does not see yet, is written again."""
        for name in readers:
            reward, store = self._panel.rewards[name], self._panel.stores[name]
            if reward.fill_with(self._cache, store, text, start, end):
                return name
        return None

    def _store_for_lm(self, text: PagedText, start: int, end: int) -> None:
        """The language model does not see the last id yet: every step begins with it."""
        end = min(end, len(text.ids) - 1)
        self._lm.prefill(self._cache, text.ids[start:end], text.pages, start)
