"""The paged K/V cache of one model: a fixed pool of pages and the list of those that are free."""

from dataclasses import dataclass

import torch

PAGE_SIZE = 16
SCRATCH_PAGE = 0  # belongs to no sequence: rows that nobody reads may be written there


@dataclass(frozen=True)
class CacheLayout:
    """What one token occupies: the same in every layer."""

    layers: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * self.dtype.itemsize


class PagedCache:
    """Pages of keys and values, [L, pages, page_size, Hkv, D] each, shared by many sequences.

    Token j of a sequence is row j % page_size of its page j // page_size. Pages are zeroed when
    they come into being; what a finished sequence leaves in them is never read, because every
    reader masks rows at or past the prefix length.
    """

    def __init__(self, layout: CacheLayout, page_size: int = PAGE_SIZE) -> None:
        self.layout = layout
        self.page_size = page_size
        self.k_pages = self._pages(1)  # the scratch page
        self.v_pages = self._pages(1)
        self._free: list[int] = []

    def _pages(self, count: int) -> torch.Tensor:
        at = self.layout
        shape = (at.layers, count, self.page_size, at.kv_heads, at.head_size)
        return torch.zeros(shape, dtype=at.dtype, device=at.device)

    @property
    def pages_in_use(self) -> int:
        return self.k_pages.shape[1] - 1 - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take pages from the pool; it grows where it is short, which moves no page's number."""
        if count > len(self._free):
            self._grow(count - len(self._free))
        return [self._free.pop() for _ in range(count)]

    def release(self, pages: list[int]) -> None:
        # Popped from the end, so a sequence that takes them again gets them in ascending order.
        self._free.extend(reversed(pages))

    def _grow(self, count: int) -> None:
        before = self.k_pages.shape[1]
        for name in ("k_pages", "v_pages"):  # in turn, so that the peak is one copy and not two
            grown = self._pages(before + count)
            grown[:, :before] = getattr(self, name)
            setattr(self, name, grown)
        self._free = [*range(before + count - 1, before - 1, -1), *self._free]
