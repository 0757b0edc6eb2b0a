"""The attention of a decoder layer in one launch: ``branch_attention`` with the merge of its splits
in the same kernel, and with a division of the prefix that is the same in any batch.

A prefix is divided at multiples of CHUNK keys, a number that depends on the model and the device
alone. A program takes one chunk; the last that holds a key also takes the tail. Programs of chunks
past the end, and below every window, leave at once. Each of the others leaves its rows' maximum m,
sum of exp(s - m) and sum acc of exp(s - m) v; the one that arrives last at its tile merges them in
the order of the chunks, UNROLL at a time from multiples of UNROLL on. A chunk or a group in which a
row sees nothing adds exact zeros. So neither the other rows, nor other texts, nor the width of the
page table have a part in a row's bits.

Floor: as ``branch_attention``; on top rows * chunks * (D + 2) * 4 bytes, written and read in L2.
"""

import triton
import triton.language as tl

from args_fast.kernels.branch_attention import add_block, count_path
from args_fast.kernels.layer_products import launch_dependents, wait


@triton.jit(do_not_specialize=["N", "B", "table_stride", "chunks", "window"])
def _attend(
    q_ptr,  # [B or 2 B, N, Hq, D] f32 | bf16 | f16, contiguous
    tail_k_ptr,  # [B, N, Hkv, D] as q, contiguous
    tail_v_ptr,
    k_pages_ptr,  # [pages, PAGE_SIZE, Hkv, D] as q
    v_pages_ptr,
    page_table_ptr,  # [B, P] i32
    lengths_ptr,  # [B] i32
    tail_mask_ptr,  # [N, N] u8, contiguous
    adapted_tail_k_ptr,  # of B texts after the B others, with the same prefixes; or None
    adapted_tail_v_ptr,
    adapted_k_pages_ptr,
    adapted_v_pages_ptr,
    out_ptr,  # as q
    acc_ptr,  # [as q, chunks, D] f32
    state_ptr,  # [as q, chunks, 2] f32: m and total
    counters_ptr,  # [texts * Hkv * tiles] i32, zeros
    scale,
    window,  # or None
    N,
    B,  # page tables
    chunks,
    k_stride_page,
    k_stride_row,
    k_stride_h,
    v_stride_page,
    v_stride_row,
    v_stride_h,
    adapted_k_stride_page,  # None without adapted texts
    adapted_k_stride_row,
    adapted_k_stride_h,
    adapted_v_stride_page,
    adapted_v_stride_row,
    adapted_v_stride_h,
    table_stride,
    Hkv: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,  # a multiple of BLOCK_N
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
    UNROLL: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    wait(PDL)
    tiles = tl.cdiv(N * G, BLOCK_M)
    tile = tl.program_id(0) % tiles
    h = tl.program_id(0) // tiles % Hkv
    b = tl.program_id(0) // tiles // Hkv
    chunk = tl.program_id(1)
    text = b
    if adapted_tail_k_ptr is not None:  # noqa: SIM102 (when compiled, and when run)
        if b >= B:
            text = b - B
            tail_k_ptr, tail_v_ptr = adapted_tail_k_ptr, adapted_tail_v_ptr
            k_pages_ptr, v_pages_ptr = adapted_k_pages_ptr, adapted_v_pages_ptr
            k_stride_page, v_stride_page = adapted_k_stride_page, adapted_v_stride_page
            k_stride_row, v_stride_row = adapted_k_stride_row, adapted_v_stride_row
            k_stride_h, v_stride_h = adapted_k_stride_h, adapted_v_stride_h

    length = tl.load(lengths_ptr + text)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = row // G
    head = h * G + row % G
    real = n < N
    out_row = (b.to(tl.int64) * N + n) * (Hkv * G) + head
    used = tl.maximum(tl.cdiv(length, CHUNK), 1)
    lowest_chunk = 0
    if window is not None:
        path = count_path(tail_mask_ptr, n, N, TAIL_N)
        lowest = path - window  # the lowest position in each window, less length
        first = tl.maximum(length + tl.min(tl.where(real, lowest, 0), 0), 0)
        lowest_chunk = tl.minimum(first // CHUNK, used - 1)
    if chunk >= used:
        return
    if chunk < lowest_chunk:
        return

    d = tl.arange(0, BLOCK_D)
    whole = d < D
    within = real[:, None] & whole
    q = tl.load(q_ptr + (out_row * D)[:, None] + d, mask=within, other=0.0)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    start = chunk * CHUNK
    stop = tl.minimum(start + CHUNK, length)
    table = page_table_ptr + text.to(tl.int64) * table_stride
    k_head = k_pages_ptr + h * k_stride_h
    v_head = v_pages_ptr + h * v_stride_h
    # Page numbers are read one block ahead of the keys that they lead to: as loads of the same
    # iteration they would take half of the pipeline's stages.
    position = start + tl.arange(0, BLOCK_N)
    page = tl.load(table + position // PAGE_SIZE, mask=position < stop, other=0)
    for _ in range(start, stop, BLOCK_N):
        stored = position < stop
        slot = position % PAGE_SIZE
        k_at = page.to(tl.int64) * k_stride_page + slot * k_stride_row
        v_at = page.to(tl.int64) * v_stride_page + slot * v_stride_row
        mask = stored[:, None] & whole
        k = tl.load(k_head + k_at[:, None] + d, mask=mask, other=0.0)
        v = tl.load(v_head + v_at[:, None] + d, mask=mask, other=0.0)
        seen = stored[None, :]
        if window is not None:
            seen = seen & (position >= length + lowest[:, None])
        m, total, acc = add_block(q, k, v, seen, m, total, acc, scale, None)
        position += BLOCK_N
        page = tl.load(table + position // PAGE_SIZE, mask=position < stop, other=0)

    tail_rows = tl.where(chunk == used - 1, N, 0)
    tail_at = text.to(tl.int64) * N * (Hkv * D) + h * D
    for at in tl.range(0, tail_rows, TAIL_N, num_stages=1):
        j = at + tl.arange(0, TAIL_N)
        there = j < N
        seen = tl.load(tail_mask_ptr + n[:, None] * N + j, mask=real[:, None] & there, other=0) != 0
        if window is not None:
            seen = seen & (count_path(tail_mask_ptr, j, N, TAIL_N) > lowest[:, None])
        mask = there[:, None] & whole
        row_at = tail_at + (j * (Hkv * D))[:, None] + d
        k = tl.load(tail_k_ptr + row_at, mask=mask, other=0.0)
        v = tl.load(tail_v_ptr + row_at, mask=mask, other=0.0)
        m, total, acc = add_block(q, k, v, seen, m, total, acc, scale, None)

    if used - lowest_chunk > 1:
        part = out_row * chunks + chunk
        tl.store(state_ptr + part * 2, m, mask=real)
        tl.store(state_ptr + part * 2 + 1, total, mask=real)
        tl.store(acc_ptr + (part * D)[:, None] + d, acc, mask=within)
        tl.debug_barrier()  # all threads have stored before one of them says so
        counter = counters_ptr + tl.program_id(0)
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if arrived < used - lowest_chunk - 1:
            return
        tl.store(counter, 0)
    total, acc = _merged(
        state_ptr, acc_ptr, out_row, chunks, lowest_chunk, used, real, total, acc, d, D, UNROLL
    )
    total = tl.where(real, total, 1.0)
    out = acc / total[:, None]
    tl.store(out_ptr + (out_row * D)[:, None] + d, out.to(q.dtype), mask=within)


@triton.jit
def _merged(
    state_ptr,
    acc_ptr,
    out_row,
    chunks,
    lowest_chunk,
    used,
    real,
    total,
    acc,
    d,
    D: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """total and acc of all chunks; those that are given where there is one chunk."""
    if used - lowest_chunk > 1:
        higher = tl.full(total.shape, float("-inf"), tl.float32)
        total = tl.zeros_like(total)
        acc = tl.zeros_like(acc)
        for start in tl.range(lowest_chunk // UNROLL * UNROLL, used, UNROLL, num_stages=1):
            chunk = start + tl.arange(0, UNROLL)
            left = (chunk >= lowest_chunk) & (chunk < used)
            there = left[:, None] & real[None, :]
            at = out_row[None, :] * chunks + chunk[:, None]
            m_of = tl.load(
                state_ptr + at * 2, mask=there, other=float("-inf"), cache_modifier=".cg"
            )
            total_of = tl.load(state_ptr + at * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
            acc_of = tl.load(
                acc_ptr + (at * D)[:, :, None] + d[None, None, :],
                mask=there[:, :, None] & (d < D)[None, None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            new = tl.maximum(higher, tl.max(m_of, 0))
            base = tl.where(new == float("-inf"), 0.0, new)
            shrink = tl.exp2(higher - base)
            weight = tl.exp2(m_of - base[None, :])
            total = total * shrink + tl.sum(total_of * weight, 0)
            acc = acc * shrink[:, None] + tl.sum(acc_of * weight[:, :, None], 0)
            higher = new
    return total, acc
