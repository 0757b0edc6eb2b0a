"""The new rows of a step: N tokens per request after prefixes that are stored once."""

import torch
from torch import Tensor

from args_fast import ops
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import PagedCache
from args_fast.models.attention import AttentionOptions


class Branches:
    """A tail of N rows over the shared prefix of each of B requests (an AttentionContext).

    The language model's single row and the k candidates of a reward model are siblings: each sees
    the prefix and itself. A chain or a tree of tokens is the same with another mask (``chain``,
    ``siblings_along``). Shapes and memory stay as they are for the object's life.

    Args:
        cache: where the prefixes are.
        page_table: [B, P] i32, wide enough for every prefix and the rows to be committed.
        lengths: [B] i32, the stored prefix of each request; a commit advances them.
        k, v: [L, B, N, Hkv, D], the rows' keys and values.
        mask: [N, N] bool, row i sees row j; None for siblings.
        is_prompt: the rows are the next ones of a text, a chain. Then the fused layers attend to
            them as to stored ones, which is faster; a row's last bits depend on where a text is
            cut. Without a mask.
    """

    def __init__(
        self,
        cache: PagedCache,
        page_table: Tensor,
        lengths: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        *,
        is_prompt: bool = False,
    ) -> None:
        self.cache = cache
        self.page_table = page_table
        self.lengths = lengths
        self.k = k
        self.v = v
        N = k.shape[2]
        mask = chain(N, k.device) if is_prompt else mask
        self.mask = torch.eye(N, dtype=torch.bool, device=k.device) if mask is None else mask
        self.is_prompt = is_prompt
        self._depth = None if mask is None else mask.sum(1) - 1  # ancestors of each row

    @classmethod
    def within(
        cls,
        memory: BatchMemory,
        name: str,
        cache: PagedCache,
        rows: int,
        *,
        group: int = 0,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> "Branches":
        """Branches of a batch, in its memory.

        Args:
            memory: of the batch.
            name: of the tensors in it.
            cache: where the prefixes are.
            rows: N.
            group: the cache group whose pages the prefixes are in.
            lengths: those of other branches over the same prefixes, to share them.
            mask: [N, N] bool; None for siblings.
        """
        layout, B = cache.layout, memory.B
        shape = B, layout.layers, rows, layout.kv_heads, layout.head_size
        k, v = (
            memory.tensor(f"{name} {kind}", layout.dtype, *shape, device=layout.device).view(
                layout.layers, B, *shape[2:]
            )
            for kind in ("keys", "values")
        )
        if lengths is None:
            lengths = memory.tensor(f"{name} lengths", torch.int32, B, device=layout.device)
        return cls(cache, memory.table(group, layout.device), lengths, k, v, mask)

    def keys_and_values(self, layers: slice) -> list[Tensor]:
        """Those of the rows and of the pages, of some layers."""
        cache = self.cache
        return [x[layers] for x in (self.k, self.v, cache.k_pages, cache.v_pages)]

    def positions(self, dtype: torch.dtype = torch.int64) -> Tensor:
        """[B, N]: a row's position is the prefix length plus its number of ancestors. Of siblings,
        int32 positions are a view of the lengths."""
        prefix = self.lengths.to(dtype)[:, None].expand(-1, self.mask.shape[0])
        return prefix if self._depth is None else prefix + self._depth

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
        """Make row branch[b] of each request the next row of its prefix, in every layer."""
        ops.commit(self.k, self.v, branch, *self._prefixes)

    def commit_rows(self, rows: Tensor, counts: Tensor) -> None:
        """Make the first counts[b] of rows[b] (i64 [B], [B, n]) the next rows of each prefix, in
        every layer. The others are written too, past the prefix, where nothing reads them."""
        index = self.lengths.long()[:, None] + torch.arange(rows.shape[1], device=rows.device)
        page = self.page_table.gather(1, index // self.cache.page_size).long()
        slot = index % self.cache.page_size
        request = torch.arange(rows.shape[0], device=rows.device)[:, None]
        self.cache.k_pages[:, page, slot] = self.k[:, request, rows]
        self.cache.v_pages[:, page, slot] = self.v[:, request, rows]
        self.lengths += counts.to(self.lengths.dtype)

    def select_commit(self, *select_arguments: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Let ``ops.select`` choose a row of each request, from its arguments, and commit it.
        Returns branch, reward and score [B]."""
        return ops.select_commit(*select_arguments, self.k, self.v, *self._prefixes)

    @property
    def _prefixes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.cache.k_pages, self.cache.v_pages, self.page_table, self.lengths


def chain(rows: int, device: torch.device) -> Tensor:
    """The mask [N, N] of a text's next N tokens: each row sees those before it."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).tril()


def siblings_along(positions: int, k: int, closings: int, device: torch.device) -> Tensor:
    """The mask [N, N] of k candidates at each of several positions of a drafted text, each with
    closing ids after it; N = (1 + closings) * positions * k.

    Candidate 0 of a position is the drafted token: all candidates of later positions see it. Rows
    are ordered by their place in the closing chain (the candidates come first), then by position,
    then by candidate.
    """
    row = torch.arange((1 + closings) * positions * k, device=device)
    place, branch = row // (positions * k), row % (positions * k)
    chained = (branch[:, None] == branch) & (place[:, None] >= place)
    drafted = (place == 0) & (branch % k == 0)
    return chained | (drafted & (branch[:, None] // k > branch // k))
