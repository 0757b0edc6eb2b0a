"""The device memory of one runner's batches: allocated once, used from its first byte on."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from args_fast.kvcache.storage import SCRATCH_PAGE
from args_fast.kvcache.transfer import send_into


class BatchMemory:
    """Named tensors for a batch of B rows with k candidates, and its page tables.

    A tensor is a view of memory that is allocated once, for the largest batch; only a larger k than
    ever before moves it. So a captured graph finds its tensors where they were.

    Args:
        device: where tensors are unless ``tensor`` is given another device.
        rows: the largest B.
        longest: pages of the longest text that fits: the widest page table.
        moved: called before memory moves; captured graphs that use it are invalid then.

    Attributes:
        B, k: sizes of the current batch.
        tables: the page tables of the current batch by (cache group, device), [B, P] i32 each.
    """

    def __init__(
        self, device: torch.device, rows: int, longest: int, moved: Callable[[], None]
    ) -> None:
        self.device = device
        self.B = self.k = 0
        self.tables: dict[tuple[int, torch.device], Tensor] = {}
        self.blocks: dict[str, Tensor] = {}
        self._rows = rows
        self._longest = longest
        self._moved = moved
        self._pages: Mapping[int, int] = {}

    def reshape(self, B: int, k: int, pages: Mapping[int, int]) -> None:
        """Begin a batch of another shape; ``pages`` is the table width of each cache group."""
        self.B, self.k, self._pages = B, k, dict(pages)
        self.tables = {}

    def tensor(
        self,
        name: str,
        dtype: torch.dtype,
        *shape: int,
        device: torch.device | None = None,
        widest: int = 0,
    ) -> Tensor:
        """A tensor of this shape, whose first size is B.

        Args:
            name: of the memory, unique in the runner.
            device: in place of the runner's.
            widest: elements of the widest row that a later batch may want.
        """
        size = math.prod(shape)
        if name not in self.blocks or self.blocks[name].numel() < size:
            self._moved()
            largest = self._rows * max(widest, math.prod(shape[1:]))
            self.blocks[name] = torch.empty(
                max(size, largest), dtype=dtype, device=device or self.device
            )
        return self.blocks[name][:size].view(shape)

    def table(self, group: int, device: torch.device) -> Tensor:
        """The page table [B, P] i32 of one cache group on a device."""
        key = group, device
        if key not in self.tables:
            self.tables[key] = self.tensor(
                f"{device} table {group}",
                torch.int32,
                self.B,
                self._pages[group],
                device=device,
                widest=self._longest,
            )
        return self.tables[key]

    def send_tables(self, pages: Mapping[int, list[list[int]]]) -> None:
        """Write the pages of each row of each cache group into its tables; rows that only fill up
        the batch, and columns that are not used yet, get the scratch page."""
        for (group, _), table in self.tables.items():
            width = table.shape[1]
            rows = [(row + [SCRATCH_PAGE] * width)[:width] for row in pages[group]]
            self.send(table, rows, [SCRATCH_PAGE] * width)

    def send(self, target: Tensor, rows: list, filler: object) -> None:
        """Write one value per request into a tensor whose first size is B."""
        values = rows + [filler] * (self.B - len(rows))
        host = torch.tensor(values, dtype=target.dtype, device="cpu")
        send_into(target, host.view(target.shape))
