"""The paged K/V cache of one model: a fixed pool of pages on the device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from args_fast import large_pages
from args_fast.errors import ConfigError

PAGE_SIZE = 16
SCRATCH_PAGE = 0  # belongs to no sequence: rows that nobody reads may be written there


def pages_for(tokens: int, page_size: int = PAGE_SIZE) -> int:
    """Pages that hold this many tokens."""
    return -(-tokens // page_size)


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
    """Pages of keys and values, [L, 1 + pages, page_size, Hkv, D] each, shared by many sequences.

    Token j of a sequence is row j % page_size of its page j // page_size; which pages those are is
    for ``args_fast.kvcache.pages`` to say. The pool never moves and never grows. It is not cleared:
    every reader masks rows at or past the prefix length, whatever they hold, and on the CPU memory
    that has not been touched is not resident yet, in large pages: the first token of all makes 2 MB
    of keys and of values resident in each layer, or the whole pool if that is less.
    """

    def __init__(self, layout: CacheLayout, pages: int, page_size: int = PAGE_SIZE) -> None:
        self.layout = layout
        self.page_size = page_size
        shape = (layout.layers, 1 + pages, page_size, layout.kv_heads, layout.head_size)
        self.k_pages = _pool(shape, layout)
        self.v_pages = _pool(shape, layout)


def _pool(shape: tuple[int, ...], layout: CacheLayout) -> Tensor:
    size = math.prod(shape) * layout.dtype.itemsize
    if layout.device.type != "cpu" or size < large_pages.LARGE_PAGE:
        return torch.empty(shape, dtype=layout.dtype, device=layout.device)
    try:
        return large_pages.allocate(size).view(layout.dtype).view(shape)
    except OSError as error:
        raise ConfigError(
            f"a K/V cache of {2 * size} bytes does not fit into this machine's memory; give a "
            "smaller cache_bytes"
        ) from error


@dataclass(frozen=True)
class GroupCache:
    """A K/V cache, its name in the engine, and the cache group whose page numbers it uses."""

    name: str
    group: int
    cache: PagedCache
