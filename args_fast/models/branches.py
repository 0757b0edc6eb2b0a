"""The rows under way: N new tokens per sequence behind prefixes that are stored once."""

import torch
from torch import Tensor

from args_fast import ops
from args_fast.kvcache.storage import PagedCache
from args_fast.models.attention import AttentionOptions


class Branches:
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
