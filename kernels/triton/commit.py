"""The winner's keys and values become a row of the prefix, in every layer, in one launch.

    k_pages[l, page_table[b, t // page_size], t % page_size] = tail_k[l, b, branch[b]]
    v_pages[l, page_table[b, t // page_size], t % page_size] = tail_v[l, b, branch[b]]
    lengths[b] = t + 1                                             where t was lengths[b]

A program takes one layer of one sequence, keys and values. All L programs of a sequence need t, and
none may advance it before the others have read it; programs of one launch cannot wait for each
other. So reading t and saying so are one atomic operation: each program adds ARRIVED, 2^20, to
lengths[b], and what it gets back is t in the lower 20 bits and in the upper the number of programs
that came before it. The one that finds L - 1 before it is the last, and stores t + 1, which clears
the count. No other memory holds state between launches, so there is nothing to reset, and a
captured CUDA graph can be replayed for ever. Nobody else may look at lengths meanwhile, but that
holds for any operation that changes them.

Floor: 2 * L * Hkv * D * itemsize bytes per sequence, read once and written once.
"""

import triton
import triton.language as tl
from torch import Tensor

from args_fast.kernels.device import too_old

ARRIVED = tl.constexpr(1 << 20)
LAYER_LIMIT = 2047  # what is left of 31 bits
# Not measured: elements that a program moves at a time, 16 bytes a thread in 16 bits; its warps.
BLOCK, WARPS = 1024, 4


@triton.jit(do_not_specialize=["table_stride"])
def _commit(
    tail_k_ptr,  # [L, B, N, E] any dtype, E = Hkv * D
    tail_v_ptr,  # [L, B, N, E]
    branch_ptr,  # [B] i64
    k_pages_ptr,  # [L, pages, PAGE_SIZE, E]
    v_pages_ptr,  # [L, pages, PAGE_SIZE, E]
    page_table_ptr,  # [B, P] i32
    lengths_ptr,  # [B] i32
    tail_k_stride_l,
    tail_k_stride_b,
    tail_k_stride_n,
    tail_v_stride_l,
    tail_v_stride_b,
    tail_v_stride_n,
    k_stride_l,
    k_stride_page,
    k_stride_row,
    v_stride_l,
    v_stride_page,
    v_stride_row,
    table_stride,
    E: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    n = tl.load(branch_ptr + b)

    # Relaxed: only lengths[b] itself passes between the programs.
    seen = tl.atomic_add(lengths_ptr + b, ARRIVED, sem="relaxed")
    t = seen & (ARRIVED - 1)
    if seen // ARRIVED == tl.num_programs(0) - 1:
        tl.store(lengths_ptr + b, t + 1)

    page = tl.load(page_table_ptr + b * table_stride + t // PAGE_SIZE).to(tl.int64)
    row = t % PAGE_SIZE
    tail_k = tail_k_ptr + layer * tail_k_stride_l + b * tail_k_stride_b + n * tail_k_stride_n
    tail_v = tail_v_ptr + layer * tail_v_stride_l + b * tail_v_stride_b + n * tail_v_stride_n
    k_row = k_pages_ptr + layer * k_stride_l + page * k_stride_page + row * k_stride_row
    v_row = v_pages_ptr + layer * v_stride_l + page * v_stride_page + row * v_stride_row
    for start in range(0, E, BLOCK):
        e = start + tl.arange(0, BLOCK)
        k = tl.load(tail_k + e, mask=e < E)
        v = tl.load(tail_v + e, mask=e < E)
        tl.store(k_row + e, k, mask=e < E)
        tl.store(v_row + e, v, mask=e < E)


def _in_a_row(x: Tensor) -> bool:
    return x.stride(-1) == 1 and (x.shape[-2] == 1 or x.stride(-2) == x.shape[-1])


def unsupported(
    tail_k: Tensor,
    tail_v: Tensor,
    branch: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    L, page_size, P = k_pages.shape[0], k_pages.shape[2], page_table.shape[1]
    if L > LAYER_LIMIT or P * page_size >= ARRIVED.value:
        return (
            f"it takes up to {LAYER_LIMIT} layers and prefixes below {ARRIVED.value} tokens, not "
            f"{L} layers and {P} pages of {page_size} rows"
        )
    if not (_in_a_row(k_pages) and _in_a_row(v_pages)):
        return "it takes pages with the heads of a row side by side"
    if lengths.shape[0] > 1 and lengths.stride(0) != 1:
        return "it takes lengths in one piece"
    return too_old(k_pages.device)


def commit(
    tail_k: Tensor,
    tail_v: Tensor,
    branch: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
) -> None:
    """tail_k, tail_v [L, B, N, Hkv, D], of the pages' dtype; branch [B] i64; k_pages, v_pages
    [L, pages, page_size, Hkv, D], the heads of a row side by side; page_table [B, P] i32; lengths
    [B] i32, contiguous. Pages and lengths are changed in place. One launch, whose grid depends on
    the shape alone."""
    L, B, _, Hkv, D = tail_k.shape
    tail_k, tail_v = (x if _in_a_row(x) else x.contiguous() for x in (tail_k, tail_v))
    E = Hkv * D
    _commit[L, B](
        tail_k,
        tail_v,
        branch.contiguous(),
        k_pages,
        v_pages,
        page_table,
        lengths,
        *tail_k.stride()[:3],
        *tail_v.stride()[:3],
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        page_table.stride(0),
        E=E,
        PAGE_SIZE=k_pages.shape[2],
        BLOCK=min(triton.next_power_of_2(E), BLOCK),
        num_warps=WARPS,
    )
