"""How many pages the caches of a pair of models get, decided once, before the first request."""

import math
from dataclasses import dataclass

import torch

from args_fast.errors import ConfigError
from args_fast.kvcache.storage import PAGE_SIZE, pages_for
from args_fast.machine import available_memory
from args_fast.models.backbone import Backbone

# Of the RAM that is available on the CPU. A page costs nothing until something is written to it.
CPU_SHARE = 0.25


@dataclass(frozen=True)
class CacheUse:
    """What the cache holds, and what has come of it.

    Attributes:
        tokens: that fit, in both models' caches.
        bytes: of both caches together.
        pages, pages_in_use, page_size: of either cache; page_size in tokens.
        prompt_tokens, shared_tokens: tokens of all prompts so far, and those of them that were
            found in pages which others had filled.
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
        """The part of all prompt tokens that was found in shared pages."""
        return self.shared_tokens / max(1, self.prompt_tokens)

    def sequences(self, length: int) -> int:
        """How many sequences of this many tokens, prompt included, fit beside one another."""
        return self.pages // pages_for(length)


def pages_within(
    lm: Backbone, rm: Backbone, rows: int, memory_fraction: float, cache_bytes: int | None
) -> int:
    """Pages that each of the two caches gets; a page of one and a page of the other hold the same
    tokens, so one number serves both.

    Args:
        lm, rm: the models, in memory already.
        rows: sequences decoded together at most: no more pages than they could use.
        memory_fraction: of a CUDA device's memory, models included.
        cache_bytes: of both caches together; None for the fraction (CUDA), or a quarter of the RAM
            that is available (CPU).

    Raises:
        ConfigError: a value is outside its range, or leaves no room for one page.
    """
    if not 0 < memory_fraction <= 1:
        raise ConfigError(f"memory_fraction is {memory_fraction}; it must be above 0 and at most 1")
    page_of = [(m.device, PAGE_SIZE * m.layout.bytes_per_token) for m in (lm, rm)]
    page = sum(size for _, size in page_of)
    if cache_bytes is not None:
        given, pages = f"cache_bytes is {cache_bytes}", cache_bytes // page
    elif lm.device.type == "cuda":
        given = f"memory_fraction is {memory_fraction}"
        pages = min(
            _left(device, memory_fraction) // sum(size for at, size in page_of if at == device)
            for device in {lm.device, rm.device}
        )
    else:
        budget = int(CPU_SHARE * available_memory())
        given = f"{CPU_SHARE:.0%} of the RAM that is available are {budget} bytes"
        pages = budget // page
    pages -= 1  # the scratch page
    if pages < 1:
        raise ConfigError(
            f"{given}; the caches need at least {2 * page} bytes (two pages of {PAGE_SIZE} "
            "tokens, in both models). Give more, or use smaller models."
        )
    longest = lm.max_length
    return pages if math.isinf(longest) else min(pages, rows * pages_for(int(longest)))


def _left(device: torch.device, memory_fraction: float) -> int:
    """Bytes of a CUDA device's share that are not taken yet."""
    free, total = torch.cuda.mem_get_info(device)
    return free - int((1 - memory_fraction) * total)
