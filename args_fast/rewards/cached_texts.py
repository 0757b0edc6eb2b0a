"""r of texts that grow, by a decoder model that keeps the K/V of what it has read.

The ids whose K/V are stored are remembered for each request. The next texts share a longest common
prefix with them, and with each other; only what comes after it is run, as chains in one tail. A
tokenizer may change ids before the end of a text when the text grows: the common prefix is then
shorter, and rows past it are written again.
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
LONGEST_CHAIN = 32  # rows after the common prefix; beyond it texts are read one after the other


@dataclass
class Stored:
    """What is stored of one request: the K/V of ``ids``, in ``pages``; and the reward of texts that
    may come again."""

    ids: Ids = ()
    pages: list[int] = field(default_factory=list)
    known: dict[Ids, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chains:
    """Texts of one request to be read after its stored prefix."""

    key: Hashable
    texts: list[Ids]
    prefix: int

    @property
    def depth(self) -> int:
        return max(map(len, self.texts)) - self.prefix


@dataclass(frozen=True)
class Tail:
    """The K/V [L, N, Hkv, D] of the chains of one request, row ``depth * width + chain``."""

    chains: Chains
    k: Tensor
    v: Tensor
    width: int


class CachedTexts:
    """A decoder model with a head, read at a text's last token.

    Args:
        backbone: the model, proved to branch.
        head: applied to the last hidden state.
    """

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
        by_depth: dict[int, list[Chains]] = {}
        for key, of_key in texts.items():
            stored = self._stored.setdefault(key, Stored())
            unknown = [text for text in dict.fromkeys(of_key) if text not in stored.known]
            if not unknown:
                continue
            chains = self._prepare(key, unknown)
            if chains.depth > LONGEST_CHAIN and len(unknown) > 1:
                for text in unknown:
                    self._read([self._prepare(key, [text])])
            else:
                by_depth.setdefault(chains.depth, []).append(chains)
        for group in by_depth.values():
            self._read(group)
        return {
            key: [self._stored[key].known[text] for text in of_key] for key, of_key in texts.items()
        }

    @torch.inference_mode()
    def keep(self, key: Hashable, text: Ids) -> None:
        """Store the K/V of one of a request's texts that were read last."""
        stored = self._stored[key]
        stored.known = {text: stored.known[text]}
        tail = self._tails.pop(key, None)
        if tail is None or text not in tail.chains.texts or len(stored.ids) != tail.chains.prefix:
            return
        start, end = tail.chains.prefix, len(text)
        chain = tail.chains.texts.index(text)
        rows = torch.arange(end - start, device=tail.k.device) * tail.width + chain
        slots = self._slots(stored, start, end)
        self._cache.k_pages.flatten(1, 2).index_copy_(1, slots, tail.k[:, rows])
        self._cache.v_pages.flatten(1, 2).index_copy_(1, slots, tail.v[:, rows])
        stored.ids = text

    def drop(self, key: Hashable) -> None:
        """Forget a request; its pages are free at once."""
        self._tails.pop(key, None)
        stored = self._stored.pop(key, None)
        if stored is not None:
            self._free += stored.pages

    def _prepare(self, key: Hashable, texts: list[Ids]) -> Chains:
        """Store all that the texts have in common, but one id of the shortest."""
        stored = self._stored[key]
        prefix = min(map(len, texts)) - 1
        for text in texts[1:]:
            prefix = min(prefix, common_prefix(texts[0], text))
        start = min(prefix, common_prefix(texts[0], stored.ids))
        stored.ids = texts[0][:start]  # no more than that, should what follows fail
        self._reserve(stored, prefix)
        if start < prefix:
            ids = list(texts[0][start:prefix])
            self._backbone.prefill(self._cache, ids, stored.pages, start)
        stored.ids = texts[0][:prefix]
        return Chains(key, texts, prefix)

    def _read(self, group: list[Chains]) -> None:
        """One pass over chains of one depth."""
        layout, device = self._backbone.layout, self._backbone.device
        B, depth, width = len(group), group[0].depth, max(len(c.texts) for c in group)
        shape = layout.layers, B, width * depth, layout.kv_heads, layout.head_size
        k, v = (torch.empty(shape, dtype=layout.dtype, device=device) for _ in range(2))
        pages = [self._stored[chains.key].pages or [SCRATCH_PAGE] for chains in group]
        lengths = torch.tensor([c.prefix for c in group], dtype=torch.int32, device=device)
        tail = Branches(
            self._cache, _padded(pages, device), lengths, k, v, _mask(width, depth, device)
        )
        ids = torch.zeros(B, depth, width, dtype=torch.int64, device="cpu")
        last = torch.zeros(B, width, dtype=torch.int64, device="cpu")
        for b, chains in enumerate(group):
            for j, text in enumerate(chains.texts):
                suffix = torch.tensor(text[chains.prefix :], device="cpu")
                ids[b, : len(suffix), j] = suffix
                last[b, j] = (len(suffix) - 1) * width + j
        ids, last = ids.flatten(1).to(device), last.to(device)
        hidden = self._backbone.hidden(ids, tail.positions(), tail)
        hidden = hidden.gather(1, last[:, :, None].expand(-1, -1, hidden.shape[2]))
        for b, (chains, values) in enumerate(
            zip(group, self._head.rewards(hidden).tolist(), strict=True)
        ):
            self._stored[chains.key].known |= zip(chains.texts, values, strict=False)
            self._tails[chains.key] = Tail(chains, k[:, b], v[:, b], width)

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


def _mask(width: int, depth: int, device: torch.device) -> Tensor:
    """[N, N] bool: a row sees itself and the rows before it in its chain."""
    row = torch.arange(width * depth, device=device)
    chain, place = row % width, row // width
    return (chain[:, None] == chain) & (place[:, None] >= place)


def _padded(pages: list[list[int]], device: torch.device) -> Tensor:
    """[B, P] i32"""
    width = max(map(len, pages))
    rows = [[*row, *[SCRATCH_PAGE] * (width - len(row))] for row in pages]
    return torch.tensor(rows, dtype=torch.int32, device=device)
