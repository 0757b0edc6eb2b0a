"""Which request holds which page: the free list, reference counts, and prefixes that are shared.

All of it is on the host. A pool numbers the pages of a *cache group*: caches whose readers see the
same ids, so that one page number means the same tokens in each of them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from args_fast.kvcache.storage import PAGE_SIZE, SCRATCH_PAGE

Block = tuple[int, tuple[int, ...]]  # (the prefix before it, its tokens)


@dataclass(eq=False)
class PagedText:
    """The ids that one cache group reads of a request, and the pages that hold their K/V.

    Attributes:
        ids: prompt and response as this group reads them.
        pages: in the order of the ids.
        cached_tokens: ids whose rows are stored, while the prompt is being filled.
        registered: the number of pages that other requests can find, and the serial number of the
            prefix that they make.
    """

    ids: list[int]
    pages: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    registered: tuple[int, int] = (0, 0)


class PagePool:
    """``size`` pages, numbered from 1: each is free, held by requests, or retained.

    A full page whose keys and values are written can be registered as a *block*: its tokens after
    the prefix that precedes it. Other requests that begin with the same tokens find it and hold it
    too; it is never written to again. Prefixes have serial numbers, and a block is looked up by
    (serial number of the preceding prefix, its own tokens) itself and not by a hash of that, so two
    different texts can never be taken for one another.

    A block that no request holds is retained until its page is needed. The block released first is
    evicted first, and of one request the last page first, since the earlier pages lead to it.
    """

    def __init__(self, size: int, page_size: int = PAGE_SIZE) -> None:
        self.size = size
        self.page_size = page_size
        # Popped from the end: ascending at first, then the pages just used, which are warm.
        self._free = list(range(size, SCRATCH_PAGE, -1))
        self._ref_count = [0] * (size + 1)
        self._retained: OrderedDict[int, None] = OrderedDict()  # the next to evict is first
        self._blocks: dict[Block, tuple[int, int]] = {}  # -> page, serial number
        self._block_of: dict[int, Block] = {}
        self._serial = 0

    @property
    def pages_in_use(self) -> int:
        """Pages that some request holds."""
        return self.size - self.available

    @property
    def available(self) -> int:
        """Pages that ``allocate`` could give."""
        return len(self._free) + len(self._retained)

    def ref_count(self, page: int) -> int:
        return self._ref_count[page]

    def allocate(self, count: int) -> list[int]:
        """Pages for one request to write to. The caller has checked ``available``."""
        if count > self.available:
            raise RuntimeError(f"{count} pages requested, {self.available} available")
        pages = []
        for _ in range(count):
            if not self._free:
                self._evict(next(iter(self._retained)))
            pages.append(self._free.pop())
            self._ref_count[pages[-1]] = 1
        return pages

    def match_prefix(self, tokens: Sequence[int], root: int, limit: int) -> tuple[list[int], int]:
        """Hold the registered pages that ``tokens`` begin with, at most ``limit`` of them.

        Returns the pages and the serial number of the prefix that they make. ``root`` is the number
        of the empty prefix, 0 or below: pages under different roots are never shared.
        """
        pages: list[int] = []
        prefix = root
        for start in range(0, limit * self.page_size, self.page_size):
            block = self._blocks.get((prefix, tuple(tokens[start : start + self.page_size])))
            if block is None:
                break
            page, prefix = block
            self._ref_count[page] += 1
            self._retained.pop(page, None)
            pages.append(page)
        return pages, prefix

    def register(self, page: int, prefix: int, tokens: Sequence[int]) -> int:
        """Let other requests find a full, written page. Returns the serial number of the prefix
        that ends with it: an older one where the same text is stored already."""
        block = (prefix, tuple(tokens))
        if block in self._blocks:
            return self._blocks[block][1]
        self._serial += 1
        self._blocks[block] = page, self._serial
        self._block_of[page] = block
        return self._serial

    def release(self, pages: Sequence[int], *, retain: bool = True) -> None:
        """Release one request's pages, given in the order of its text. Registered pages can be
        found again, unless ``retain`` is False."""
        for page in reversed(pages):
            self._ref_count[page] -= 1
            if not retain and page in self._block_of:
                del self._blocks[self._block_of.pop(page)]
            if self._ref_count[page]:
                continue
            if page in self._block_of:
                self._retained[page] = None
            else:
                self._free.append(page)

    def evict_all(self) -> None:
        """Evict every retained page: the models may change before the next request."""
        for page in list(self._retained):
            self._evict(page)

    def _evict(self, page: int) -> None:
        del self._retained[page]
        del self._blocks[self._block_of.pop(page)]
        self._free.append(page)
