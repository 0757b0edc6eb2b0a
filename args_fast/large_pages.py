"""Memory on the CPU in large pages, for what is read in long runs. Where an address is translated
every 2 MB and not every 4 KB, weights are read up to a fifth faster (docs/performance.md), and
stored keys and values up to a seventh (docs/decisions.md)."""

import mmap

import torch
from torch import Tensor

LARGE_PAGE = 2 << 20


def allocate(size: int) -> Tensor:
    """``size`` bytes that begin at a large page, where the system has them. They are zeros, and
    resident from the large page on that is written to first."""
    memory = mmap.mmap(-1, size + LARGE_PAGE, **_private())
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % LARGE_PAGE :][:size]


def _private() -> dict[str, int]:
    """Arguments of mmap for memory of this process alone: shared memory has no large pages."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return {}
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
