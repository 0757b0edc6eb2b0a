"""Prompts through the fused layers: some rows at a time, each a chain over those before it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from args_fast.kvcache.storage import PagedCache
from args_fast.models.branches import Branches
from args_fast.models.fused import CPU, FusedLayers
from args_fast.ops import cpp
from args_fast.ops.decoder_layers import backend

# Rows of a prompt that go through the layers together: with more of them the weights are read less
# often, but what a layer holds of them leaves the caches (measured: docs/decisions.md).
PROMPT_ROWS = 128
# Where torch's products of many rows are faster. In bfloat16 the widest model that takes the op:
# measured on an AMD EPYC (Zen 5). On an Intel Xeon, which has tiles: rows times the squared width
# from which on torch is, by type.
WIDEST_BFLOAT16 = 2048
MANY_IN_TILES = {torch.float32: 3e8, torch.bfloat16: 2e9}


def takes(layers: FusedLayers, rows: int) -> bool:
    """Whether a prompt of this many rows goes through the op: in C++, unless torch's products of
    them are faster in the modules."""
    matrix = layers.matrix
    if backend(matrix.device.type) != "cpp":
        return False
    kind, width = matrix.dtype, matrix.shape[1]
    if kind != layers.dtype:
        return True  # torch would have to make floats of the matrices first
    if cpp.kernels() == "amx":
        return rows * width**2 < MANY_IN_TILES.get(kind, math.inf)
    return kind != torch.bfloat16 or width <= WIDEST_BFLOAT16


@torch.no_grad()
def prefill(
    layers: FusedLayers, caches: Sequence[PagedCache], ids: list[int], pages: list[int], start: int
) -> None:
    """Store the keys and values of ids after the ``start`` that are stored.

    Args:
        layers: for which it ``takes`` prompts.
        caches: its own; or two, those of the language model and of the model that an adapter makes
            of it, in one pass.
        ids: of a text, after the ``start`` that are stored.
        pages: of the text, in each cache.
        start: how many ids are stored.
    """
    page_size = caches[0].page_size
    table = torch.tensor([pages], dtype=torch.int32, device=CPU)
    stop = start + len(ids)
    for first in range(start, stop, PROMPT_ROWS):
        index = torch.arange(first, min(stop, first + PROMPT_ROWS), device=CPU)
        rows = len(index)
        length = torch.tensor([first], dtype=torch.int32, device=CPU)
        readers = [Branches(c, table, length, *_rows_of(c, rows), is_prompt=True) for c in caches]
        piece = torch.tensor([ids[first - start :][:rows]], device=CPU)
        if len(readers) == 1:
            layers.hidden(piece, *readers)
        else:
            layers.hidden_with(piece, *readers)
        slots = table[0].long()[index // page_size] * page_size + index % page_size
        for reader in readers:
            reader.cache.k_pages.flatten(1, 2).index_copy_(1, slots, reader.k[:, 0])
            reader.cache.v_pages.flatten(1, 2).index_copy_(1, slots, reader.v[:, 0])


def _rows_of(cache: PagedCache, rows: int) -> tuple[Tensor, Tensor]:
    """Room for keys and values of the rows of one text, [L, 1, rows, Hkv, D] each."""
    layout = cache.layout
    shape = layout.layers, 1, rows, layout.kv_heads, layout.head_size
    k, v = (torch.empty(shape, dtype=layout.dtype, device=CPU) for _ in range(2))
    return k, v
