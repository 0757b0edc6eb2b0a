"""How many pages the caches get, decided once, before the first request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from args_fast.engine.scheduler import Stats
from args_fast.errors import ConfigError
from args_fast.kvcache.pages import PagePool
from args_fast.kvcache.storage import PAGE_SIZE, CacheLayout, PagedCache, pages_for
from args_fast.machine import available_memory

# Share of the available RAM on the CPU. A page costs nothing until something is written to it.
CPU_SHARE = 0.25


@dataclass(frozen=True)
class CacheUse:
    """How much the K/V cache holds, and how it was used.

    Attributes:
        tokens: tokens that fit.
        bytes: size of all models' caches together.
        pages, pages_in_use, page_size: of the language model's cache; page_size in tokens.
        prompt_tokens, shared_tokens: tokens of all prompts so far, and those of them that were
            found in pages which other requests had filled.
        preemptions: times that a request gave its pages back to another, to be recomputed.
    """

    tokens: int
    bytes: int
    pages: int
    pages_in_use: int
    page_size: int
    prompt_tokens: int
    shared_tokens: int
    preemptions: int

    @property
    def shared(self) -> float:
        """Share of all prompt tokens that was found in shared pages."""
        return self.shared_tokens / max(1, self.prompt_tokens)

    def sequences(self, length: int) -> int:
        """How many sequences of ``length`` tokens, prompt included, fit at the same time."""
        return self.pages // pages_for(length)


def cache_use(pool: PagePool, caches: Sequence[PagedCache], stats: Stats) -> CacheUse:
    """The use of the language model's pool, and the size of all caches."""
    return CacheUse(
        tokens=pool.size * pool.page_size,
        bytes=sum(cache.k_pages.nbytes + cache.v_pages.nbytes for cache in caches),
        pages=pool.size,
        pages_in_use=pool.pages_in_use,
        page_size=pool.page_size,
        prompt_tokens=stats.prompt_tokens,
        shared_tokens=stats.shared_tokens,
        preemptions=stats.preemptions,
    )


def pages_within(
    readers: Sequence[CacheLayout],
    longest: float,
    rows: int,
    memory_fraction: float,
    cache_bytes: int | None,
) -> int:
    """Pages that each cache gets.

    Args:
        readers: the layout of each cache, the language model's first; models are in memory already.
        longest: tokens that a text may have.
        rows: requests decoded together at most: no more pages than they could use.
        memory_fraction: of a CUDA device's memory, models included.
        cache_bytes: of all caches together; None for the fraction (CUDA), or a quarter of the RAM
            that is available (CPU).

    Raises:
        ConfigError: there is no room for one page.
    """
    page_bytes = [(layout.device, PAGE_SIZE * layout.bytes_per_token) for layout in readers]
    page = sum(size for _, size in page_bytes)
    if cache_bytes is not None:
        source, pages = f"cache_bytes is {cache_bytes}", cache_bytes // page
    elif readers[0].device.type == "cuda":
        source = f"memory_fraction is {memory_fraction}"
        pages = min(
            _free_bytes(device, memory_fraction)
            // sum(size for other, size in page_bytes if other == device)
            for device in {layout.device for layout in readers}
        )
    else:
        budget = int(CPU_SHARE * available_memory())
        source = f"{CPU_SHARE:.0%} of the available RAM is {budget} bytes"
        pages = budget // page
    pages -= 1  # the scratch page
    if pages < 1:
        raise ConfigError(
            f"{source}; the caches need at least {2 * page} bytes (two pages of {PAGE_SIZE} tokens "
            "in every model). Give more, or use smaller models."
        )
    return pages if math.isinf(longest) else min(pages, rows * pages_for(int(longest)))


def _free_bytes(device: torch.device, memory_fraction: float) -> int:
    """Bytes of a CUDA device's share that are not taken yet."""
    free, total = torch.cuda.mem_get_info(device)
    return free - int((1 - memory_fraction) * total)
