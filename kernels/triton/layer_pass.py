"""The launches of one pass through decoder layers: how each product is cut, and its arguments.

How anything is cut follows from the model's sizes and the device alone, never from the number of
rows: see args_fast.kernels.layer_products.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from args_fast.kernels.branch_attention import TUNING as ATTENTION
from args_fast.kernels.device import machine, tuned
from args_fast.kernels.layer_attention import _attend
from args_fast.kernels.layer_products import ROWS, _add, _begin, _feed, _norm, _project

NORM_N = 256  # elements of a row that a program of the final norm takes
PROMPT = 2048  # tokens of one text at which the attention is to fill the device
LONGEST = 1024  # keys of a chunk of the attention at most
TAIL_N = 16  # rows of the tail that the attention takes at a time
PAIR_RANK = 16  # of a term, up to which a program takes two tiles of rows
LEAST_RANK = 16  # to which a term's is padded: the least that the tensor cores take
SPLITS = 8  # along K, at most
# What a program's beginning and the way from the first partial sum stored to the first one read
# last, in loads of a block of W; they decide how often K is divided. Not measured.
BEGIN, MERGE = 1.0, 2.0
UNROLL = 4  # chunks that the attention's merge loads at a time, of tiles of 16 rows

Layer = dict[str, Any]  # each of LAYER_WEIGHTS, a tensor or None; and terms, as term_of finds them
Norm = tuple[Tensor | None, Tensor | None]  # weight and bias
Term = tuple[Tensor | None, Tensor | None, Tensor | None]  # a, b and bias: see layer_terms
Reader = tuple[Tensor, Tensor, Tensor, Tensor]  # tail_k, tail_v, k_pages, v_pages of a layer
NO_TERM: Term = (None, None, None)

# What the rows before the first layer are made of: ids [B, N] i64, the embeddings of tokens [V, H];
# those of positions [.., H] and the positions [B, N] i32 or i64, or None twice; the row of position
# 0. Ids and positions have any strides.
# Tables are contiguous and of the weights' type.
Embedding = tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]

# By compute capability, the highest that the device has. Each product, by bytes of an element
# (_project by the padded head too): rows of W per tile, K per block, warps, stages, and programs of
# one multiprocessor, for which K is divided. "ahead": blocks of its weights that a program asks for
# before it may begin.
# (8, 0) is not measured: chosen so that nothing spills, two programs fit a multiprocessor of an
# A100 and together have 32 KB or more of W under way (2 TB/s * 0.7 us of latency is 13 KB for each
# multiprocessor). (9, 0): as (8, 0), but for the entries that scripts/layer_tuning.py found on an
# H100, in bfloat16 with the shapes of OPT-2.7B and OPT-350M.
TUNING: dict[tuple[int, int], dict[str, Any]] = {
    (8, 0): {
        "ahead": 2,
        "project": {
            (2, 16): (16, 256, 4, 3, 2),
            (2, 32): (32, 128, 4, 4, 2),
            (2, 64): (64, 128, 4, 3, 2),
            (2, 128): (128, 64, 4, 3, 2),
            (2, 256): (256, 32, 4, 3, 2),
            (4, 16): (16, 32, 4, 4, 2),
            (4, 32): (32, 32, 4, 4, 2),
            (4, 64): (64, 32, 4, 4, 2),
            (4, 128): (128, 32, 4, 3, 2),
            (4, 256): (256, 16, 8, 3, 2),
        },
        "feed": {2: (32, 128, 4, 3, 2), 4: (32, 32, 4, 4, 2)},
        "add": {2: (64, 128, 8, 4, 2), 4: (64, 32, 4, 4, 2)},
    },
}
TUNING[9, 0] = {
    "ahead": 2,
    "project": TUNING[8, 0]["project"]
    | {
        (2, 64): (64, 128, 8, 3, 3),
        (2, 128): (128, 128, 4, 2, 3),
    },
    "feed": {2: (64, 128, 4, 3, 4), 4: (32, 32, 4, 4, 2)},
    "add": {2: (32, 128, 4, 5, 4), 4: (64, 32, 4, 4, 2)},
}


class LayerPass:
    """The launches of one call: sizes, scratch memory, and how each product is cut."""

    def __init__(
        self,
        hidden: Tensor,
        layer: Layer,
        tail_k: Tensor,
        counters: Tensor,
        norm: str,
        eps: float,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> None:
        """tail_k: [L, B, N, Hkv, D]. Where hidden has more than B texts those after the first B
        are adapted, else all are."""
        B, self.N, self.H = hidden.shape
        self.first_adapted = (B - tail_k.shape[1]) * self.N
        self.out, self.counters, self.eps, self.rotary = hidden, counters, eps, rotary
        in_place = hidden.dtype == torch.float32
        self.x = hidden if in_place else hidden.new_empty(hidden.shape, dtype=torch.float32)
        self.rms = norm == "rms"
        self.M = B * self.N
        self.row_tiles = triton.cdiv(self.M, ROWS)
        self.Hkv, self.D = tail_k.shape[3:]
        self.Hq = layer["q"].shape[0] // self.D
        self.F = layer["up"].shape[0]
        self.dtype = tail_k.dtype
        self.size = self.dtype.itemsize
        capability, self.multiprocessors = machine(hidden.device)
        self.tuning = tuned(TUNING, capability)
        self.pdl = capability >= (9, 0)
        self.common = {"PDL": self.pdl} | ({"launch_pdl": True} if self.pdl else {})
        self.of_attention = prefix_cut(
            tuned(ATTENTION, capability),
            self.size,
            self.D,
            self.Hq // self.Hkv,
            self.Hkv,
            self.multiprocessors,
        )
        self._allocate(1 if layer["gate"] is None else 2)
        tiles = max(self.heads, self.tiles, triton.cdiv(self.F, self.of_feed["BLOCK_N"]))
        if max(tiles * self.row_tiles, self.M * self.Hq) > counters.numel():
            raise ValueError(
                f"{self.M} rows at a time are more than the Triton layers take; a text has "
                f"{self.N} of them, so ask for fewer candidates"
            )

    def _allocate(self, gates: int) -> None:
        self.heads = self.Hq + 2 * self.Hkv
        padded = max(16, triton.next_power_of_2(self.D))
        self.of_project = self._cut("project", (self.size, padded), self.H, tiles=self.heads)
        self.of_feed = self._cut("feed", self.size, self.H, N=self.F)
        self.of_o = self._cut("add", self.size, self.Hq * self.D, N=self.H)
        self.of_down = self._cut("add", self.size, self.F, N=self.H)
        self.width = self.of_o["BLOCK_N"]  # of a tile whose row has statistics
        self.tiles = triton.cdiv(self.H, self.width)
        self.of_norm = {"RMS": self.rms, "STATS": triton.next_power_of_2(self.tiles)}
        new, M = self.x.new_empty, self.M
        self.q = new((M, self.Hq * self.D), dtype=self.dtype)
        self.mixed = new((M, self.Hq * self.D), dtype=self.dtype)
        self.inner = new((M, self.F), dtype=self.dtype)
        # Of x as the attention finds it, and as the MLP does: who adds to x reads one of them while
        # others already write the other.
        self.stats = [new((M, self.tiles, 2)) for _ in range(2)]
        columns = {"of_project": self.heads * self.D, "of_feed": gates * self.F}
        columns |= {"of_o": self.H, "of_down": self.H}
        sums = [getattr(self, name)["SPLITS"] * N for name, N in columns.items()]
        self.partial = new((M * max(sums),))

    def _cut(self, kind: str, key: object, K: int, *, N: int = 0, tiles: int = 0) -> dict[str, Any]:
        """How a product is cut, from the model's sizes and the device alone."""
        block_n, block_k, warps, stages, resident = self.tuning[kind][key]
        slots = resident * self.multiprocessors
        sums = ROWS * 4 / (block_k * self.size)
        blocks = triton.cdiv(K, block_k)
        splits = divide(tiles or triton.cdiv(N, block_n), blocks, slots, sums)
        ahead = min(self.tuning["ahead"], triton.cdiv(blocks, splits)) * block_k * self.size // 128
        return {
            "SPLITS": splits,
            "EVEN": K % block_k == 0,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "STAGES": stages,
            "LINES": triton.next_power_of_2(ahead) if self.pdl else 0,
            "num_warps": warps,
        } | self.common

    def _for(
        self, cut: dict[str, Any], weight: Tensor, a: Sequence[Tensor | None]
    ) -> tuple[dict[str, Any], int]:
        """The cut for a weight, for terms of which these are the a's, and for M; and the tiles of
        rows, or pairs of them. What differs changes no sum: a row has the same bits in all of them.

        Lines are asked for ahead only along rows, and the tiles of columns take more registers
        than programs of more warps have, or pairs with a term; so do pairs with a high rank."""
        columns, rank = _columns(weight), max(map(_rank, a))
        pair = self.M > ROWS and rank <= (0 if columns else PAIR_RANK)
        cut = cut | {"COLUMNS": columns, "PAIR": pair}
        if columns:
            cut |= {"LINES": 0, "num_warps": 4}
        cut["RANK"] = max(LEAST_RANK, triton.next_power_of_2(rank)) if rank else 0
        return cut, triton.cdiv(self.M, (1 + pair) * ROWS)

    def begin(self, rows: Tensor, embedding: Embedding | None, stats: Tensor) -> None:
        """x from rows, or from an embedding."""
        ids, tokens, places, positions, offset = embedding or (None, rows, None, None, 0)
        _begin[self.row_tiles, self.tiles](
            tokens,
            ids,
            places,
            positions,
            self.x,
            stats,
            self.M,
            self.N,
            self.H,
            self.tiles,
            offset,
            *((0, 0) if ids is None else ids.stride()),
            *((0, 0) if positions is None else positions.stride()),
            RMS=self.rms,
            BLOCK_N=self.width,
            **self.common,
        )

    def norm(self, out: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        _norm[self.row_tiles, triton.cdiv(self.H, NORM_N)](
            self.x,
            out,
            stats,
            weight,
            bias,
            self.M,
            self.H,
            self.tiles,
            self.eps,
            WIDTH=self.width,
            BLOCK_N=NORM_N,
            **self.of_norm,
            **self.common,
        )

    def project(
        self,
        layer: Layer,
        norm: tuple,
        stats: Tensor | None,
        tail_k: Tensor,
        tail_v: Tensor,
        adapted_k: Tensor | None = None,
        adapted_v: Tensor | None = None,
    ) -> None:
        """tail_k, tail_v of a layer; adapted_k, adapted_v those of the adapted rows, where they
        have others."""
        cos, sin = self.rotary or (None, None)
        a, b, added = zip(*(term_of(layer, name) for name in ("q", "k", "v")), strict=True)
        cut, row_tiles = self._for(self.of_project, layer["q"], a)
        _project[(self.heads * cut["SPLITS"] * row_tiles,)](
            self.x,
            stats,
            *norm,
            *(layer[name] for name in ("q", "k", "v", "q_bias", "k_bias", "v_bias")),
            layer["q_norm"],
            layer["k_norm"],
            cos,
            sin,
            self.q,
            tail_k,
            tail_v,
            adapted_k,
            adapted_v,
            *_substituted(a),
            *_substituted(b),
            *added,
            self.partial,
            self.counters,
            self.M,
            self.H,
            self.tiles,
            row_tiles,
            self.first_adapted,
            *map(_rank, a),
            self.eps,
            *(_stride(layer[name]) for name in ("q", "k")),
            HQ=self.Hq,
            HKV=self.Hkv,
            D=self.D,
            R=0 if cos is None else cos.shape[-1],
            WIDTH=self.width,
            **self.of_norm,
            **cut,
        )

    def attend(
        self,
        readers: Sequence[Reader],
        page_table: Tensor,
        lengths: Tensor,
        mask: Tensor,
        scale: float,
        window: int,
    ) -> None:
        """readers: one, or the language model's and that of the adapted rows, over prefixes with
        the same pages."""
        cut = self.of_attention
        B, P = page_table.shape
        (tail_k, tail_v, k_pages, v_pages), *others = readers
        adapted = others[0] if others else (None,) * 4
        page_size = k_pages.shape[1]
        programs = len(readers) * B * self.Hkv * triton.cdiv(self.N * cut["G"], cut["BLOCK_M"])
        chunks = max(1, triton.cdiv(P * page_size, cut["CHUNK"]))
        rows = self.M * self.Hq * chunks
        _attend[programs, chunks](
            self.q,
            tail_k,
            tail_v,
            k_pages,
            v_pages,
            page_table,
            lengths,
            mask,
            *adapted,
            self.mixed,
            self.x.new_empty(rows * self.D),
            self.x.new_empty(rows * 2),
            self.counters,
            scale,
            window or None,
            self.N,
            B,
            chunks,
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            *(stride for pages in adapted[2:] for stride in _page_strides(pages)),
            page_table.stride(0),
            PAGE_SIZE=page_size,
            **cut,
            **self.common,
        )

    def feed(self, layer: Layer, norm: Norm, stats: Tensor, activation: str) -> None:
        cut = self.of_feed
        tiles = triton.cdiv(self.F, cut["BLOCK_N"])
        a, b, added = zip(*(term_of(layer, name) for name in ("gate", "up")), strict=True)
        cut, row_tiles = self._for(cut, layer["up"], a)
        _feed[(tiles * cut["SPLITS"] * row_tiles,)](
            self.x,
            stats,
            *norm,
            *(layer[name] for name in ("gate", "up", "gate_bias", "up_bias")),
            *a,
            *b,
            *added,
            self.inner,
            self.partial,
            self.counters,
            self.M,
            self.H,
            self.F,
            self.tiles,
            row_tiles,
            self.first_adapted,
            *map(_rank, a),
            self.eps,
            _stride(layer["up"]),
            ACTIVATION=activation,
            WIDTH=self.width,
            **self.of_norm,
            **cut,
        )

    def add(
        self,
        y: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cut: dict[str, Any],
        norm: Norm,
        stats: Tensor | None,
        new_stats: Tensor,
        term: Term = NO_TERM,
    ) -> None:
        cut, row_tiles = self._for(cut, weight, term[:1])
        _add[(self.tiles * cut["SPLITS"] * row_tiles,)](
            y,
            weight,
            bias,
            *term,
            self.x,
            stats,
            *norm,
            new_stats,
            self.partial,
            self.counters,
            self.M,
            self.H,
            y.shape[1],
            self.tiles,
            row_tiles,
            self.first_adapted,
            _rank(term[0]),
            self.eps,
            _stride(weight),
            **self.of_norm,
            **cut,
        )


def term_of(layer: Layer, name: str) -> Term:
    """What an adapter adds to one of a layer's matrices."""
    a, b, bias = (layer.get(f"{name}_term_{part}") for part in ("a", "b", "bias"))
    return a, b, bias


def _substituted(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors with another in place of those that are None, if there is one: where their rank
    is 0 nothing is read, but the kernel wants one kind of pointer."""
    some = next((tensor for tensor in tensors if tensor is not None), None)
    return [some if tensor is None else tensor for tensor in tensors]


def _rank(a: Tensor | None) -> int:
    return 0 if a is None else a.shape[0]


def _page_strides(pages: Tensor | None) -> tuple[int | None, ...]:
    return (None,) * 3 if pages is None else pages.stride()[:3]


def _columns(weight: Tensor) -> bool:
    return weight.stride(1) != 1 and weight.shape[1] > 1


def _stride(weight: Tensor) -> int:
    return weight.stride(1) if _columns(weight) else weight.stride(0)


def prefix_cut(
    tuning: dict, size: int, D: int, G: int, Hkv: int, multiprocessors: int
) -> dict[str, Any]:
    """How the attention is cut: tiles as high as the queries of a few rows that share a head, and
    chunks of which a text of PROMPT tokens has enough to fill the device.

    Args:
        tuning: the attention's, of a capability.
        size: bytes of an element.
        D, G, Hkv: the head size, query heads of a key/value head, key/value heads.
    """
    block_d = max(16, triton.next_power_of_2(D))
    blocks = tuning["blocks"][size, block_d]
    block_m = max(rows for rows in blocks if rows == 16 or rows <= min(64, 16 * G))
    block_n, warps, stages = blocks[block_m]
    programs = max(1, tuning["warps"] // warps * multiprocessors // Hkv)
    keys = min(LONGEST, max(block_n, triton.cdiv(PROMPT, programs)))
    return {
        "Hkv": Hkv,
        "G": G,
        "D": D,
        "CHUNK": triton.cdiv(keys, block_n) * block_n,
        "BLOCK_D": block_d,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "TAIL_N": TAIL_N,
        "UNROLL": UNROLL if block_m == 16 and block_d <= 128 else 1,
        "num_warps": warps,
        "num_stages": stages,
    }


def divide(tiles: int, blocks: int, slots: int, sums: float) -> int:
    """In how many splits the blocks of K go, so that the last program ends soonest where ``slots``
    of them run at a time. sums: bytes of a tile's partial sums over those of a block of W."""

    def duration(splits: int) -> float:
        merging = MERGE + (1 + splits) * sums if splits > 1 else 0.0
        return triton.cdiv(tiles * splits, slots) * (BEGIN + triton.cdiv(blocks, splits) + merging)

    return min(range(1, min(SPLITS, blocks) + 1), key=duration)
