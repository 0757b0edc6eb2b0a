"""How many pages the caches of a pair of models get, decided once, before the first request."""

import math
from dataclasses import dataclass

import torch

from args_fast.engine.backbone import Backbone
from args_fast.engine.cache import PAGE_SIZE, pages_for
from args_fast.errors import ConfigError
from args_fast.machine import available_memory

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
        memory_fraction: of the CUDA device's memory, models included.
        cache_bytes: of both caches together; None for the fraction (CUDA), or a quarter of the RAM
            that is available (CPU).

    Raises:
        ConfigError: a value is outside its range, or leaves no room for one page.
    """
    if not 0 < memory_fraction <= 1:
        raise ConfigError(f"memory_fraction is {memory_fraction}; it must be above 0 and at most 1")
    if cache_bytes is not None:
        given, budget = f"cache_bytes is {cache_bytes}", cache_bytes
    elif lm.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(lm.device)
        budget = free - int((1 - memory_fraction) * total)
        given = f"memory_fraction is {memory_fraction}, which leaves {max(0, budget)} bytes"
    else:
        budget = int(CPU_SHARE * available_memory())
        given = f"{CPU_SHARE:.0%} of the RAM that is available are {budget} bytes"
    page = PAGE_SIZE * (lm.layout.bytes_per_token + rm.layout.bytes_per_token)
    pages = budget // page - 1  # the scratch page
    if pages < 1:
        raise ConfigError(
            f"{given}; the caches need at least {2 * page} (two pages of {PAGE_SIZE} tokens, in "
            "both models). Give more, or use smaller models."
        )
    longest = lm.max_length
    return pages if math.isinf(longest) else min(pages, rows * pages_for(int(longest)))
