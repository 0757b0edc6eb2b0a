"""The rows of a prompt: T new tokens of one sequence after those that are stored."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from args_fast import ops
from args_fast.kvcache.storage import PagedCache, pages_for
from args_fast.kvcache.transfer import send
from args_fast.models.attention import AttentionOptions
from args_fast.models.flash import torch_has_flash


class Prefill:
    """T rows of one sequence after ``start`` stored ones (an AttentionContext).

    Each layer is attended to by the first of these that computes what it asks for: flash-attn,
    torch's own attention (no window in effect, softcap or sinks), the engine's op, which takes all
    but holds T x (start + T) scores per head.

    Args:
        cache: where the rows go, and the stored ones are.
        pages: of the sequence.
        start, rows: stored tokens and new ones.
        flash: flash_attn_varlen_func, for a model without sinks; None for the others.
    """

    def __init__(
        self,
        cache: PagedCache,
        pages: list[int],
        start: int,
        rows: int,
        flash: Callable | None = None,
    ) -> None:
        device = cache.layout.device
        self.cache = cache
        self.start = start
        self.rows = rows
        self.flash = flash
        self.position = torch.arange(start, start + rows, device=device)
        table = send([pages], torch.int32, device)
        page = table[0].long()[self.position // cache.page_size]
        self.slots = page * cache.page_size + self.position % cache.page_size
        self.used = table[0, : pages_for(start + rows, cache.page_size)]
        self.stored = table[:, : max(1, pages_for(start, cache.page_size))].contiguous()
        self.lengths = send([start], torch.int32, device)
        # Where the queries and the keys begin and end.
        of_queries, of_keys = [0, rows], [0, start + rows]
        self.bounds = send([of_queries, of_keys], torch.int32, device)
        self._mask: Tensor | None = None  # made where a layer first wants it, and the same for all

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        self._store(self.cache.k_pages[layer], key)
        self._store(self.cache.v_pages[layer], value)
        if self.flash is not None:
            return self._by_flash(self.flash, query, *self._whole(layer, key, value), options)
        if _is_plain(options, self.start + self.rows):
            return self._by_torch(query, *self._whole(layer, key, value), options)
        return self._by_op(layer, query, key, value, options)

    def _store(self, pages: Tensor, rows: Tensor) -> None:
        pages.flatten(0, 1).index_copy_(0, self.slots, rows[0].transpose(0, 1))

    def _whole(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the sequence so far, [1, Hkv, start + T, D]. The new ones are stored
        already."""
        if self.start == 0:
            return key, value
        tokens = self.start + self.rows

        def gathered(pages: Tensor) -> Tensor:
            return pages.index_select(0, self.used).flatten(0, 1)[None, :tokens].transpose(1, 2)

        return gathered(self.cache.k_pages[layer]), gathered(self.cache.v_pages[layer])

    def _by_flash(
        self, flash: Callable, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """Its causal mask is aligned to the last key, and a window is counted without the token
        itself."""
        window = options.sliding_window
        out: Tensor = flash(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            cu_seqlens_q=self.bounds[0],
            cu_seqlens_k=self.bounds[1],
            max_seqlen_q=self.rows,
            max_seqlen_k=self.start + self.rows,
            softmax_scale=options.scale,
            causal=True,
            window_size=(window - 1, 0) if window else (-1, -1),
            softcap=options.softcap,
        )
        return out[None]

    def _by_torch(
        self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and query.is_cuda and not torch_has_flash(self.cache.layout):
            # Of torch's kernels only flash knows groups: the others hold all scores in memory.
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        single = self.rows == 1  # it sees everything, and needs no mask
        mask = self._lower_right(query) if self.start and not single else None
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and not single,
            scale=options.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2)

    def _lower_right(self, query: Tensor) -> Tensor:
        """[T, start + T], row i sees the first start + i + 1."""
        T, S = self.rows, self.start + self.rows
        if query.is_cuda:  # what it means instead of a mask, which the flash kernel does not take
            return causal_lower_right(T, S)
        if self._mask is None:
            self._mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril_(self.start)
        return self._mask

    def _by_op(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        T = self.rows
        return ops.branch_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            self.cache.k_pages[layer],
            self.cache.v_pages[layer],
            self.stored,
            self.lengths,
            torch.ones(T, T, dtype=torch.bool, device=query.device).tril(),
            options.scale,
            options.sliding_window,
            options.softcap,
            options.sinks,
        )


def _is_plain(options: AttentionOptions, tokens: int) -> bool:
    """Whether torch's own attention computes the same over a text of this many tokens."""
    windowed = 0 < options.sliding_window < tokens
    return not windowed and options.softcap == 0.0 and options.sinks is None
