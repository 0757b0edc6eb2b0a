"""Which request waits, is filled or runs, and which gives its pages back. Ids and pages only.

First come, first served:

- Requests are admitted strictly in the order of their arrival. One that does not fit now waits, and
  all after it wait too, so that many short ones cannot starve a long one.
- One prompt is filled at a time, so the next one can share its pages.
- When pages run out, the youngest gives its pages back and returns to the head of the queue. It is
  filled again later from its prompt and its tokens so far. The oldest always keeps its pages, so
  every request ends.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from args_fast.engine.request import Request, Status
from args_fast.errors import CapacityError
from args_fast.kvcache.pages import PagedText, PagePool
from args_fast.kvcache.storage import PAGE_SIZE, pages_for


@dataclass(frozen=True)
class Stats:
    """Counts since the engine was made.

    Attributes:
        prompt_tokens: tokens of all prompts that were filled.
        shared_tokens: those of them that were found in pages which other requests had filled.
        preemptions: times that a request gave its pages back midway.
        unknown_ids: ids of the language model that mean nothing to one of its rewards, and are
            never candidates of requests which that reward guides.
        drafted_tokens: drafted tokens that were verified.
        accepted_tokens: those of them that were ARGS' own choice.
    """

    prompt_tokens: int = 0
    shared_tokens: int = 0
    preemptions: int = 0
    unknown_ids: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Scheduler:
    """Queues of requests, and the pages that they hold in each cache group.

    Args:
        pools: the pages of each cache group.
        rows: requests decoded together at most.
        steps: steps of a burst: so many tokens a request has room for when it is admitted.
        root_of: the number of a request's empty prefix in a cache group, below 0; requests with
            different numbers never share pages of that group.
    """

    def __init__(
        self,
        pools: Sequence[PagePool],
        *,
        rows: int,
        steps: int,
        root_of: Callable[[Request, int], int],
    ) -> None:
        self.pools = list(pools)
        self.rows = rows
        self.steps = steps
        self.stats = Stats()
        # In the order of arrival: those that run, the one that is filled, those that wait.
        self.running: list[Request] = []
        self.filling: Request | None = None
        self.waiting: deque[Request] = deque()
        self._root_of = root_of

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.filling or self.running)

    def everyone(self) -> list[Request]:
        """All requests that have not left, in the order of arrival."""
        return [*self.running, *([self.filling] if self.filling else []), *self.waiting]

    def check(self, request: Request) -> None:
        """Raises CapacityError where a request would not fit if it were alone."""
        new = request.config.max_new_tokens
        for group, text in request.texts.items():
            longest = len(text.ids) - len(request.response) + new
            if pages_for(longest) > self.pools[group].size:
                fits = self.pools[group].size * PAGE_SIZE
                room = fits - (longest - new)
                fewer = f", set max_new_tokens to at most {room}" if room > 0 else ""
                raise CapacityError(
                    f"the prompt has {longest - new} tokens and {new} new ones are asked for, "
                    f"{longest} together; the cache holds {fits}. Shorten the prompt{fewer}, or "
                    "give the cache more memory (memory_fraction, cache_bytes)."
                )

    def submit(self, request: Request) -> None:
        request.status = Status.WAITING
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take a request out of its queue and free its pages. Its status is the caller's to set."""
        if request is self.filling:
            self.filling = None
        elif request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self._release(request)

    # ---- prompts -------------------------------------------------------------------------------

    def admit(self) -> Request | None:
        """Give the request at the head of the queue its pages, if there are enough."""
        if not self.waiting or len(self.running) >= self.rows:
            return None
        request = self.waiting[0]
        for group, text in request.texts.items():
            if not self._give_pages(request, group, text):
                self._release(request)
                return None
        self.waiting.popleft()
        self.filling, request.status = request, Status.FILLING
        text = request.texts[0]
        if request.cached_tokens is None:
            request.cached_tokens = text.cached_tokens
        self.count(prompt_tokens=len(text.ids), shared_tokens=text.cached_tokens)
        return request

    def _give_pages(self, request: Request, group: int, text: PagedText) -> bool:
        pool, length = self.pools[group], len(text.ids)
        steps = min(self.steps, request.remaining)
        # The last token has yet to go through the language model, so its row is written still.
        root = self._root_of(request, group)
        shared, prefix = pool.match_prefix(text.ids, root, (length - 1) // PAGE_SIZE)
        new = pages_for(length + steps) - len(shared)
        # And one page for each request that will need more, or it would soon be preempted for them.
        growing = sum(self._grows(other, group) for other in self.running)
        if new + growing > pool.available:
            pool.release(shared)
            return False
        text.pages = shared + pool.allocate(new)
        text.cached_tokens = len(shared) * PAGE_SIZE
        text.registered = len(shared), prefix
        return True

    @staticmethod
    def _grows(request: Request, group: int) -> bool:
        text = request.texts.get(group)
        if text is None:
            return False
        longest = len(text.ids) + request.max_length - len(request.ids)
        return len(text.pages) < pages_for(longest)

    def start(self, request: Request) -> None:
        """The request's prompt is stored: it runs."""
        assert request is self.filling
        self.filling, request.status = None, Status.RUNNING
        self.running.append(request)

    def register(self, request: Request, group: int, written: int) -> None:
        """Let other requests find the pages that are full of written rows."""
        text = request.texts[group]
        count, prefix = text.registered
        for i in range(count, written // PAGE_SIZE):
            tokens = text.ids[i * PAGE_SIZE : (i + 1) * PAGE_SIZE]
            prefix = self.pools[group].register(text.pages[i], prefix, tokens)
            text.registered = i + 1, prefix

    # ---- pages of running requests -------------------------------------------------------------

    def missing_pages(self, request: Request, group: int, steps: int) -> int:
        """Pages that the next steps need and the request does not hold."""
        text = request.texts[group]
        return max(0, pages_for(len(text.ids) + request.in_flight + steps) - len(text.pages))

    def has_room(self, requests: Sequence[Request], steps: int) -> bool:
        """Whether all of them can be extended by so many steps as things are."""
        return all(
            sum(self.missing_pages(r, group, steps) for r in requests if group in r.texts)
            <= pool.available
            for group, pool in enumerate(self.pools)
        )

    def extend(self, request: Request, steps: int) -> bool:
        """Give a running request the pages of its next steps; False where there are not enough."""
        if not self.has_room([request], steps):
            return False
        for group, text in request.texts.items():
            text.pages += self.pools[group].allocate(self.missing_pages(request, group, steps))
        return True

    def preempt(self) -> Request:
        """Return the youngest request that holds pages to the head of the queue."""
        request = self.filling or self.running[-1]
        self.remove(request)
        self.waiting.appendleft(request)
        request.status = Status.WAITING
        self.count(preemptions=1)
        return request

    def evict_all(self) -> None:
        """Evict every retained page of every group."""
        for pool in self.pools:
            pool.evict_all()

    def _release(self, request: Request) -> None:
        for group, text in request.texts.items():
            # What a failed request computed may be broken.
            self.pools[group].release(text.pages, retain=request.status is not Status.FAILED)
            text.pages, text.cached_tokens, text.registered = [], 0, (0, 0)
        request.lag = 0

    def count(self, **more: int) -> None:
        """Add to the statistics."""
        now = {name: getattr(self.stats, name) + count for name, count in more.items()}
        self.stats = replace(self.stats, **now)
