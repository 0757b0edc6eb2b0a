"""r of texts that grow, by a decoder model that keeps the K/V of what it has read.

The ids whose K/V are stored are remembered for each request. The next texts share a prefix with
them; only what comes after it is run, in one tail. A tokenizer may change ids before the end of a
text when the text grows: the prefix is then shorter, and rows past it are written again. The rows
of one request are the tree of its texts, in which what several begin with stands once. Requests
that are read together have one mask, so their texts are chains of equal length.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from args_fast.kvcache.storage import SCRATCH_PAGE, PagedCache, pages_for
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches
from args_fast.rewards.heads import RewardHead

Ids = tuple[int, ...]
LONGEST_CHAIN = 32  # ids after the common prefix; beyond it texts are read one after the other
ALONG = 16  # ids that the texts of one request have in common and the tail may still have to read


@dataclass
class Stored:
    """What is stored of one request: the K/V of ``ids``, in ``pages``; and the reward of texts that
    may come again."""

    ids: Ids = ()
    pages: list[int] = field(default_factory=list)
    known: dict[Ids, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unread:
    """Texts of one request to be read after its stored prefix."""

    key: Hashable
    texts: list[Ids]
    prefix: int

    @property
    def depth(self) -> int:
        return max(map(len, self.texts)) - self.prefix


@dataclass(frozen=True)
class Tail:
    """K/V [L, N, Hkv, D] of the texts of one request, and the rows of each after the prefix."""

    k: Tensor
    v: Tensor
    prefix: int
    rows: dict[Ids, list[int]]


class CachedTexts:
    """A decoder model, proved to branch, with a head that is read at a text's last token."""

    def __init__(self, backbone: Backbone, head: RewardHead) -> None:
        self._backbone = backbone
        self._head = head
        self._stored: dict[Hashable, Stored] = {}
        self._tails: dict[Hashable, Tail] = {}
        self._cache = PagedCache(backbone.layout, 0)
        self._free: list[int] = []

    @torch.inference_mode()
    def values(self, texts: Mapping[Any, Sequence[Ids]]) -> dict[Any, list[float]]:
        """r of each text of each request, f32; no text is empty."""
        self._tails = {}
        by_depth: dict[int, list[Unread]] = {}
        for key, of_key in texts.items():
            known = self._stored.setdefault(key, Stored()).known
            unknown = [text for text in dict.fromkeys(of_key) if text not in known]
            if not unknown:
                continue
            unread = self._prepare(key, unknown, room=ALONG if len(texts) == 1 else 0)
            if unread.depth > LONGEST_CHAIN and len(unknown) > 1:
                for text in unknown:
                    self._read([self._prepare(key, [text])])
            else:
                by_depth.setdefault(unread.depth, []).append(unread)
        for group in by_depth.values():
            self._read(group)
        return {key: [self._stored[key].known[t] for t in of_key] for key, of_key in texts.items()}

    @torch.inference_mode()
    def keep(self, key: Hashable, text: Ids) -> None:
        """Store the K/V of one of a request's texts that were read last."""
        stored = self._stored[key]
        stored.known = {text: stored.known[text]}
        tail = self._tails.pop(key, None)
        if tail is None or text not in tail.rows or len(stored.ids) != tail.prefix:
            return
        rows = torch.tensor(tail.rows[text], device=tail.k.device)
        slots = self._slots(stored, tail.prefix, len(text))
        self._cache.k_pages.flatten(1, 2).index_copy_(1, slots, tail.k[:, rows])
        self._cache.v_pages.flatten(1, 2).index_copy_(1, slots, tail.v[:, rows])
        stored.ids = text

    def drop(self, key: Hashable) -> None:
        """Forget a request; its pages are free at once."""
        self._tails.pop(key, None)
        stored = self._stored.pop(key, None)
        if stored is not None:
            self._free += stored.pages

    def _prepare(self, key: Hashable, texts: list[Ids], room: int = 0) -> Unread:
        """Store what the texts have in common, but one id of the shortest; up to ``room`` ids are
        left to the tail."""
        stored = self._stored[key]
        common = min(map(len, texts)) - 1
        for text in texts[1:]:
            common = min(common, common_prefix(texts[0], text))
        start = min(common, common_prefix(texts[0], stored.ids))
        stored.ids = texts[0][:start]  # no more than that, should what follows fail
        if common - start <= room:
            return Unread(key, texts, start)
        self._reserve(stored, common)
        self._backbone.prefill(self._cache, list(texts[0][start:common]), stored.pages, start)
        stored.ids = texts[0][:common]
        return Unread(key, texts, common)

    def _read(self, group: list[Unread]) -> None:
        """One pass over the texts of requests, of one depth where there are several."""
        layout, device = self._backbone.layout, self._backbone.device
        if len(group) == 1:
            mask, rows = tree([text[group[0].prefix :] for text in group[0].texts])
        else:
            mask, rows = chains(max(len(unread.texts) for unread in group), group[0].depth)
        shape = layout.layers, len(group), len(mask), layout.kv_heads, layout.head_size
        k, v = torch.empty(2, *shape, dtype=layout.dtype, device=device)
        pages = [self._stored[unread.key].pages or [SCRATCH_PAGE] for unread in group]
        lengths = torch.tensor([u.prefix for u in group], dtype=torch.int32, device=device)
        tail = Branches(self._cache, _padded(pages, device), lengths, k, v, mask.to(device))
        ids = torch.zeros(len(group), len(mask), dtype=torch.int64, device="cpu")
        last = torch.zeros(len(group), len(rows), dtype=torch.int64, device="cpu")
        for b, unread in enumerate(group):
            prefix, of_text = unread.prefix, dict(zip(unread.texts, rows, strict=False))
            for j, text in enumerate(unread.texts):
                of_text[text] = of_text[text][: len(text) - prefix]
                ids[b, of_text[text]] = torch.tensor(text[prefix:], device="cpu")
                last[b, j] = of_text[text][-1]
            self._tails[unread.key] = Tail(k[:, b], v[:, b], prefix, of_text)
        hidden = self._backbone.hidden(ids.to(device), tail.positions(), tail)
        last = last[:, :, None].to(device).expand(-1, -1, hidden.shape[2])
        values = self._head.rewards(hidden.gather(1, last)).tolist()
        for unread, of_texts in zip(group, values, strict=True):
            self._stored[unread.key].known |= zip(unread.texts, of_texts, strict=False)

    # ---- pages ---------------------------------------------------------------------------------

    def _reserve(self, stored: Stored, tokens: int) -> None:
        wanted = pages_for(tokens, self._cache.page_size) - len(stored.pages)
        while wanted > len(self._free):
            self._grow()
        stored.pages += [self._free.pop() for _ in range(wanted)]

    def _grow(self) -> None:
        """Twice the pages; those in use keep their numbers."""
        before, size = self._cache, self._cache.k_pages.shape[1]
        self._cache = PagedCache(before.layout, max(16, 2 * size))
        self._cache.k_pages[:, :size] = before.k_pages
        self._cache.v_pages[:, :size] = before.v_pages
        self._free += range(size, self._cache.k_pages.shape[1])

    def _slots(self, stored: Stored, start: int, end: int) -> Tensor:
        """The rows of positions start ... end - 1 in all pages, one after the other."""
        self._reserve(stored, end)
        size, device = self._cache.page_size, self._backbone.device
        position = torch.arange(start, end, device=device)
        return torch.tensor(stored.pages, device=device)[position // size] * size + position % size


def common_prefix(a: Ids, b: Ids) -> int:
    """How many ids two texts have in common from their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared at the speed of memory
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def tree(suffixes: Sequence[Ids]) -> tuple[Tensor, list[list[int]]]:
    """The mask [N, N] of texts after their common prefix as a tree, and the rows of each text."""
    row_of: dict[Ids, int] = {}
    for text in suffixes:
        for end in range(1, len(text) + 1):
            row_of.setdefault(text[:end], len(row_of))
    rows = [[row_of[text[:end]] for end in range(1, len(text) + 1)] for text in suffixes]
    mask = torch.zeros(len(row_of), len(row_of), dtype=torch.bool, device="cpu")
    for of_text in rows:
        for i, row in enumerate(of_text):
            mask[row, of_text[: i + 1]] = True
    return mask, rows


def chains(width: int, depth: int) -> tuple[Tensor, list[list[int]]]:
    """The same for texts of up to ``depth`` ids with no row in common."""
    row = torch.arange(width * depth, device="cpu")
    mask = (row[:, None] % width == row % width) & (row[:, None] >= row)
    return mask, [list(range(j, width * depth, width)) for j in range(width)]


def _padded(pages: list[list[int]], device: torch.device) -> Tensor:
    """[B, P] i32"""
    width = max(map(len, pages))
    rows = [row + [SCRATCH_PAGE] * (width - len(row)) for row in pages]
    return torch.tensor(rows, dtype=torch.int32, device=device)
