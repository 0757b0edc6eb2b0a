"""The rows under way: N new tokens per sequence behind prefixes that are stored once."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from args_fast import ops
from args_fast.engine.attention import AttentionOptions
from args_fast.engine.cache import PagedCache, pages_for


class Tail:
    """A tail of N rows over the shared prefix of each of B sequences (an AttentionContext).

    The language model's single row, and the k candidates of the reward model, are tails with an
    identity mask: siblings that see the prefix and themselves. A chain or a tree of tokens is the
    same with another mask. Shapes and memory stay as they are for the tail's life.

    Args:
        cache: where the prefixes are.
        page_table: [B, P] i32, wide enough for every prefix and the rows to be committed.
        lengths: [B] i32, the stored prefix of each sequence; a commit advances them.
        k, v: [L, B, N, Hkv, D], the rows themselves.
    """

    def __init__(
        self, cache: PagedCache, page_table: Tensor, lengths: Tensor, k: Tensor, v: Tensor
    ) -> None:
        self.cache = cache
        self.page_table = page_table
        self.lengths = lengths
        self.k = k
        self.v = v
        self.mask = torch.eye(k.shape[2], dtype=torch.bool, device=k.device)

    def positions(self) -> Tensor:
        """[B, N]: siblings share the position behind the prefix."""
        return self.lengths.long()[:, None].expand(-1, self.mask.shape[0])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        self.k[layer].copy_(key.transpose(1, 2))
        self.v[layer].copy_(value.transpose(1, 2))
        return self.answer(layer, query, self.k[layer], self.v[layer], options)

    def answer(
        self, layer: int, query: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
    ) -> Tensor:
        """The attention of rows whose keys and values are k and v [B, N, Hkv, D]."""
        return ops.branch_attention(
            query.transpose(1, 2),
            k,
            v,
            self.cache.k_pages[layer],
            self.cache.v_pages[layer],
            self.page_table,
            self.lengths,
            self.mask,
            options.scale,
            options.sliding_window,
            options.softcap,
            options.sinks,
        )

    def commit(self, branch: Tensor) -> None:
        """Make row branch[b] of each sequence the next row of its prefix, in every layer."""
        ops.commit(self.k, self.v, branch, *self._prefixes)

    def select_commit(self, *of_select: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Let ``ops.select`` choose a row of each sequence, from its arguments, and commit it.
        Returns branch, reward and score [B]."""
        return ops.select_commit(*of_select, self.k, self.v, *self._prefixes)

    @property
    def _prefixes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.cache.k_pages, self.cache.v_pages, self.page_table, self.lengths


class Prefill:
    """T rows of one sequence behind ``start`` stored ones (an AttentionContext)."""

    def __init__(self, cache: PagedCache, pages: list[int], start: int, rows: int) -> None:
        device = cache.layout.device
        table = torch.tensor([pages], dtype=torch.int32, device=device)
        self.cache = cache
        self.start = start
        self.table = table[:, : max(1, pages_for(start, cache.page_size))].contiguous()
        self.lengths = torch.tensor([start], dtype=torch.int32, device=device)
        self.position = torch.arange(start, start + rows, device=device)
        page = table[0].long()[self.position // cache.page_size]
        self.slots = page * cache.page_size + self.position % cache.page_size

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        self._store(self.cache.k_pages[layer], key)
        self._store(self.cache.v_pages[layer], value)
        T = query.shape[2]
        if self.start == 0 and _is_plain(options, T):
            out = scaled_dot_product_attention(
                query,
                key,
                value,
                is_causal=T > 1,
                scale=options.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            return out.transpose(1, 2)
        causal = torch.ones(T, T, dtype=torch.bool, device=query.device).tril()
        return ops.branch_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            self.cache.k_pages[layer],
            self.cache.v_pages[layer],
            self.table,
            self.lengths,
            causal,
            options.scale,
            options.sliding_window,
            options.softcap,
            options.sinks,
        )

    def _store(self, pages: Tensor, rows: Tensor) -> None:
        pages.flatten(0, 1).index_copy_(0, self.slots, rows[0].transpose(0, 1))


def _is_plain(options: AttentionOptions, tokens: int) -> bool:
    """Whether torch's own attention computes the same over a text of this many tokens."""
    windowed = 0 < options.sliding_window < tokens
    return not windowed and options.softcap == 0.0 and options.sinks is None
