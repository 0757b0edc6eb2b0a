"""Who holds which page: the free list, the reference counts, and the prefixes that are shared.

All of it is on the host. One page number means a page of the language model's cache and the same
page of the reward model's, which hold the same tokens; so one table serves both.
"""

from collections import OrderedDict
from collections.abc import Sequence

from args_fast.kvcache.storage import PAGE_SIZE, SCRATCH_PAGE

Block = tuple[int, tuple[int, ...]]  # (the prefix before it, its tokens)


class PagePool:
    """``size`` pages, numbered from 1: each is free, held by sequences, or retained.

    A full page whose keys and values are written can be entered as a *block*: the tokens in it
    behind the prefix before it. Other sequences that begin with the same tokens find it and hold
    it too; nobody writes to it any more. Prefixes have serial numbers, and a block is looked up by
    (serial number of what precedes it, its own tokens) itself and not by a hash of that, so two
    different texts can never be taken for one another.

    A block that nobody holds is retained until its page is needed; the one that was let go first
    makes room first, and of one sequence the last page first, since the others lead to it.
    """

    def __init__(self, size: int, page_size: int = PAGE_SIZE) -> None:
        self.size = size
        self.page_size = page_size
        # Popped from the end: ascending at first, then those just used, which are warm.
        self._free = list(range(size, SCRATCH_PAGE, -1))
        self._ref_count = [0] * (size + 1)
        self._retained: OrderedDict[int, None] = OrderedDict()  # the next to make room stands first
        self._blocks: dict[Block, tuple[int, int]] = {}  # -> page, serial number
        self._block_of: dict[int, Block] = {}
        self._serial = 0

    @property
    def pages_in_use(self) -> int:
        """Pages that some sequence holds."""
        return self.size - self.available

    @property
    def available(self) -> int:
        """Pages that ``allocate`` could give."""
        return len(self._free) + len(self._retained)

    def ref_count(self, page: int) -> int:
        return self._ref_count[page]

    def allocate(self, count: int) -> list[int]:
        """Pages for one sequence to write to. The caller has looked at ``available``."""
        if count > self.available:
            raise RuntimeError(f"{count} pages wanted, {self.available} are available")
        pages = []
        for _ in range(count):
            if not self._free:
                self._evict(next(iter(self._retained)))
            pages.append(self._free.pop())
            self._ref_count[pages[-1]] = 1
        return pages

    def match_prefix(self, tokens: Sequence[int], root: int, limit: int) -> tuple[list[int], int]:
        """Hold the pages that begin with these tokens, at most ``limit`` of them.

        Returns them, and the serial number of the prefix that they make. ``root`` is the number of
        the empty prefix, 0 or below: pages under different roots are never shared.
        """
        pages: list[int] = []
        prefix = root
        for start in range(0, limit * self.page_size, self.page_size):
            found = self._blocks.get((prefix, tuple(tokens[start : start + self.page_size])))
            if found is None:
                break
            page, prefix = found
            self._ref_count[page] += 1
            self._retained.pop(page, None)
            pages.append(page)
        return pages, prefix

    def register(self, page: int, prefix: int, tokens: Sequence[int]) -> int:
        """Let others find a full, written page. Returns the serial number of the prefix that ends
        with it: an older one where the same text is stored already."""
        block = (prefix, tuple(tokens))
        if block in self._blocks:
            return self._blocks[block][1]
        self._serial += 1
        self._blocks[block] = page, self._serial
        self._block_of[page] = block
        return self._serial

    def release(self, pages: Sequence[int], *, retain: bool = True) -> None:
        """Let go of one sequence's pages, in the order of its text. What is in them may be found
        again, unless it is not to be retained."""
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
        """Retain nothing: the models may change before the next request."""
        for page in list(self._retained):
            self._evict(page)

    def _evict(self, page: int) -> None:
        del self._retained[page]
        del self._blocks[self._block_of.pop(page)]
        self._free.append(page)
