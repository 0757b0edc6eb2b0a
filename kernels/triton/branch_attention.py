"""Attention of a tail of N rows to one shared prefix and to their ancestors in the tail.

    s_ij  = scale * q_i . k_j                     or  softcap * tanh(scale * q_i . k_j / softcap)
    out_i = sum_j exp(s_ij) v_j / (sum_j exp(s_ij) + exp(sink))

over the keys j that row i sees: the t rows of the prefix, and the rows of the tail that tail_mask
gives it. Row i has position t + (its number of ancestors), and with a sliding window sees positions
above its own - window only. What the pages hold at and past row t is never read.

The N * G query rows that share a key/value head are the rows of one tile, so a prefix byte is read
once for all of them. More rows than the largest tile of TUNING are several tiles, whose programs
run side by side and share the bytes through L2. A tile of fewer than 16 rows is padded to 16, the
least that the tensor cores take: at a few dozen rows the kernel waits for memory, not for them.

The prefix of a sequence is divided among ``splits`` programs, the last of which also takes the
tail. Each leaves its rows' maximum m, sum of exp(s - m) and sum acc of exp(s - m) v, and a second
kernel merges them; with one split the first writes the result itself. The grid comes from shapes
alone and the division from the length on the device, so a captured CUDA graph stays right while
prefixes grow. Exponentials are of base 2, with log2(e) folded into the scores.

Floor: 2 * t * Hkv * D * itemsize bytes per sequence, once, and 4 * N * t * Hq * D flops. On top,
with more than one split: B * N * Hq * splits * (D + 2) * 4 bytes written and read back (they stay
in L2).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from args_fast.kernels.device import machine, too_old, tuned

LOG2E = tl.constexpr(1.4426950408889634)

# By compute capability, the highest that the device has. "warps": how many one multiprocessor is to
# have at once, which says how many programs a prefix is divided among. "blocks": by bytes of an
# element and head size (padded to a power of two), then by rows of a tile: keys per block, warps,
# stages of the pipeline.
# Chosen from what tests/helpers/binaries.py prints, so that no kernel spills its registers, and a
# multiprocessor has at least 16 KB of keys and values under way. Measured (on an H100, by
# scripts/layer_tuning.py): (2, 128) for 16 rows; the others are not.
TUNING = {
    (8, 0): {
        "warps": 8,
        "blocks": {
            (2, 16): {16: (128, 4, 3), 32: (128, 4, 3), 64: (64, 4, 3)},
            (2, 32): {16: (128, 4, 3), 32: (128, 4, 3), 64: (64, 4, 3)},
            (2, 64): {16: (64, 4, 3), 32: (64, 4, 3), 64: (32, 4, 3), 128: (32, 8, 3)},
            (2, 128): {16: (64, 4, 2), 32: (32, 4, 3), 64: (32, 8, 3)},
            (2, 256): {16: (32, 8, 2), 32: (32, 8, 2)},
            (4, 16): {16: (64, 4, 2)},
            (4, 32): {16: (64, 4, 2)},
            (4, 64): {16: (16, 4, 3)},
            (4, 128): {16: (16, 4, 2)},
            (4, 256): {16: (16, 8, 2)},
        },
    },
    (9, 0): {
        "warps": 8,
        "blocks": {
            (2, 16): {16: (128, 4, 3), 32: (128, 4, 3), 64: (64, 4, 3)},
            (2, 32): {16: (128, 4, 3), 32: (128, 4, 3), 64: (64, 4, 3)},
            (2, 64): {16: (64, 4, 3), 32: (64, 4, 3), 64: (64, 4, 3), 128: (64, 8, 3)},
            (2, 128): {16: (64, 8, 3), 32: (64, 4, 2), 64: (64, 8, 2), 128: (32, 8, 3)},
            (2, 256): {16: (32, 4, 2), 32: (32, 8, 2)},
            (4, 16): {16: (64, 4, 2)},
            (4, 32): {16: (64, 4, 2)},
            (4, 64): {16: (16, 4, 2)},
            (4, 128): {16: (16, 4, 2)},
            (4, 256): {16: (16, 8, 2)},
        },
    },
}
CHUNK = tl.constexpr(32)
MAX_D = 256
SPLITS = 128  # at most
MERGED, MERGED_D = (8, 32, 128), 64  # splits and elements of a head that a merging program takes


@triton.jit
def tanh(x):
    """Exact to the last few bits near 0 too, where 1 - 2 / (exp(2 x) + 1) is not."""
    square = x * x
    series = 62.0 / 2835 - square * (1382.0 / 155925)
    series = -17.0 / 315 + square * series
    series = 2.0 / 15 + square * series
    series = x + x * square * (-1.0 / 3 + square * series)
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.3, series, tl.where(x < 0, -far, far))


@triton.jit
def add_block(q, k, v, seen, m, total, acc, scale, softcap):
    """The state of a tile's rows after one more block of keys and values."""
    if q.dtype == tl.float32 and q.shape[1] > CHUNK:
        # Without tensor cores a thread holds its operands in registers along the whole inner
        # dimension, and they would not fit.
        q = tl.reshape(q, [q.shape[0], q.shape[1] // CHUNK, CHUNK])
        k = tl.reshape(k, [k.shape[0], k.shape[1] // CHUNK, CHUNK])
        q = tl.permute(q, [1, 0, 2])
        k = tl.permute(k, [1, 2, 0])
        s = tl.sum(tl.dot(q, k, input_precision="ieee"), 0) * scale
    else:
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if softcap is not None:
        s = softcap * tanh(s / softcap)
    s = tl.where(seen, s * LOG2E, float("-inf"))
    higher = tl.maximum(m, tl.max(s, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return higher, total, acc


@triton.jit
def count_path(tail_mask_ptr, row, N, BLOCK: tl.constexpr):
    """How many rows each row of the tail sees, itself among them: 0 for a row that is not there."""
    path = tl.zeros(row.shape, tl.int32)
    for at in tl.range(0, N, BLOCK, num_stages=1):
        j = at + tl.arange(0, BLOCK)
        there = (row < N)[:, None] & (j < N)
        seen = tl.load(tail_mask_ptr + row[:, None] * N + j, mask=there, other=0)
        path += tl.sum(seen.to(tl.int32), 1)
    return path


# Not specialised: what changes while a text grows, so that nothing is compiled in the middle of it.
@triton.jit(do_not_specialize=["table_stride", "N", "splits", "sliding_window"])
def _attend(
    q_ptr,  # [B, N, Hq, D] f32 | bf16 | f16
    tail_k_ptr,  # [B, N, Hkv, D] as q
    tail_v_ptr,  # [B, N, Hkv, D] as q
    k_pages_ptr,  # [pages, PAGE_SIZE, Hkv, D] as q
    v_pages_ptr,  # [pages, PAGE_SIZE, Hkv, D] as q
    page_table_ptr,  # [B, P] i32
    lengths_ptr,  # [B] i32
    tail_mask_ptr,  # [N, N] u8, contiguous
    sinks_ptr,  # [Hq] or None
    out_ptr,  # [B, N, Hq, D] as q, contiguous; or with SPLIT acc [B, N, Hq, splits, D] f32
    state_ptr,  # [B, N, Hq, splits, 2] f32: m and total; None without SPLIT
    scale,
    softcap,  # or None
    sliding_window,  # or None
    N,
    splits,
    q_stride_b,
    q_stride_n,
    q_stride_h,
    tail_k_stride_b,
    tail_k_stride_n,
    tail_k_stride_h,
    tail_v_stride_b,
    tail_v_stride_n,
    tail_v_stride_h,
    k_stride_page,
    k_stride_row,
    k_stride_h,
    v_stride_page,
    v_stride_row,
    v_stride_h,
    table_stride,
    Hkv: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
):
    tiles = tl.cdiv(N * G, BLOCK_M)
    tile = tl.program_id(0) % tiles
    h = tl.program_id(0) // tiles % Hkv
    b = tl.program_id(0) // tiles // Hkv
    split = tl.program_id(1)

    length = tl.load(lengths_ptr + b)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = row // G
    head = h * G + row % G
    real = n < N
    out_row = (b.to(tl.int64) * N + n) * (Hkv * G) + head

    first = 0
    if sliding_window is not None:
        path = count_path(tail_mask_ptr, n, N, TAIL_N)
        lowest = path - sliding_window  # the lowest position in each window, less length
        first = tl.maximum(length + tl.min(tl.where(real, lowest, 0), 0), 0)
    blocks = tl.cdiv(tl.maximum(length - first, 0), BLOCK_N)
    share = tl.cdiv(blocks, splits) * BLOCK_N
    start = first + split * share
    stop = tl.minimum(start + share, length)
    tail_rows = N
    if SPLIT:  # noqa: SIM102 (Triton folds away a branch on a constexpr, not half of a condition)
        if split < splits - 1:
            tail_rows = 0
            if start >= stop:
                state = state_ptr + (out_row * splits + split) * 2
                tl.store(state, float("-inf"), mask=real)
                tl.store(state + 1, 0.0, mask=real)
                return

    d = tl.arange(0, BLOCK_D)
    whole = d < D
    q_at = b.to(tl.int64) * q_stride_b + n * q_stride_n + head * q_stride_h
    q = tl.load(q_ptr + q_at[:, None] + d, mask=real[:, None] & whole, other=0.0)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    table = page_table_ptr + b.to(tl.int64) * table_stride
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
        within = stored[:, None] & whole
        k = tl.load(k_head + k_at[:, None] + d, mask=within, other=0.0)
        v = tl.load(v_head + v_at[:, None] + d, mask=within, other=0.0)
        seen = stored[None, :]
        if sliding_window is not None:
            seen = seen & (position >= length + lowest[:, None])
        m, total, acc = add_block(q, k, v, seen, m, total, acc, scale, softcap)
        position += BLOCK_N
        page = tl.load(table + position // PAGE_SIZE, mask=position < stop, other=0)

    tail_k = tail_k_ptr + b.to(tl.int64) * tail_k_stride_b + h * tail_k_stride_h
    tail_v = tail_v_ptr + b.to(tl.int64) * tail_v_stride_b + h * tail_v_stride_h
    for at in tl.range(0, tail_rows, TAIL_N, num_stages=1):
        j = at + tl.arange(0, TAIL_N)
        there = j < N
        seen = tl.load(tail_mask_ptr + n[:, None] * N + j, mask=real[:, None] & there, other=0) != 0
        if sliding_window is not None:
            seen = seen & (count_path(tail_mask_ptr, j, N, TAIL_N) > lowest[:, None])
        if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:  # half of the blocks of a chain are not
            within = there[:, None] & whole
            k = tl.load(tail_k + (j * tail_k_stride_n)[:, None] + d, mask=within, other=0.0)
            v = tl.load(tail_v + (j * tail_v_stride_n)[:, None] + d, mask=within, other=0.0)
            m, total, acc = add_block(q, k, v, seen, m, total, acc, scale, softcap)

    within = real[:, None] & whole
    if SPLIT:
        at = out_row * splits + split
        tl.store(state_ptr + at * 2, m, mask=real)
        tl.store(state_ptr + at * 2 + 1, total, mask=real)
        tl.store(out_ptr + (at * D)[:, None] + d, acc, mask=within)
    else:
        if sinks_ptr is not None:
            sink = tl.load(sinks_ptr + head, mask=real, other=0.0).to(tl.float32) * LOG2E
            higher = tl.maximum(m, sink)
            shrink = tl.exp2(m - higher)
            total = total * shrink + tl.exp2(sink - higher)
            acc = acc * shrink[:, None]
        total = tl.where(real, total, 1.0)
        out = acc / total[:, None]
        tl.store(out_ptr + (out_row * D)[:, None] + d, out.to(q.dtype), mask=within)


@triton.jit(do_not_specialize=["splits"])
def _merge(
    acc_ptr,  # [B, N, Hq, splits, D] f32
    state_ptr,  # [B, N, Hq, splits, 2] f32: m and total; a split without a key has -inf and 0
    sinks_ptr,  # [Hq] or None
    out_ptr,  # [B, N, Hq, D]
    splits,
    Hq: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    out_row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    whole = d < D
    at = out_row * splits + split
    m = tl.load(state_ptr + at * 2, mask=split < splits, other=float("-inf"))
    total = tl.load(state_ptr + at * 2 + 1, mask=split < splits, other=0.0)
    # A split without a key has left its acc unwritten. One whose keys gave NaN has m = -inf and
    # total = NaN, and must be seen.
    used = total != 0
    acc = tl.load(acc_ptr + (at * D)[:, None] + d, mask=used[:, None] & whole, other=0.0)

    highest = tl.max(m, 0)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + out_row % Hq).to(tl.float32) * LOG2E
        highest = tl.maximum(highest, sink)
    weight = tl.exp2(m - highest)
    total = tl.sum(total * weight, 0)
    if sinks_ptr is not None:
        total += tl.exp2(sink - highest)
    out = tl.sum(acc * weight[:, None], 0) / total
    tl.store(out_ptr + out_row * D + d, out.to(out_ptr.dtype.element_ty), mask=whole)


def unsupported(
    q: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *rest: object,
) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    D = q.shape[3]
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 or float16, not {q.dtype}"
    if D > MAX_D:
        return f"it takes heads of up to {MAX_D} elements, not {D}"
    if k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        return "it takes pages with the elements of a head side by side"
    return too_old(q.device)


def branch_attention(
    q: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    tail_mask: Tensor,
    scale: float,
    sliding_window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """See args_fast.ops.plain.branch_attention. Any strides, but the elements of a head side by
    side in the pages; other tensors are copied where theirs are not."""
    B, N, Hq, D = q.shape
    page_size, Hkv = k_pages.shape[1:3]
    G = Hq // Hkv
    q, tail_k, tail_v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, tail_k, tail_v))

    capability, multiprocessors = machine(q.device)
    tuning = tuned(TUNING, capability)
    block_d = max(16, triton.next_power_of_2(D))
    blocks = tuning["blocks"][q.element_size(), block_d]
    tiles = triton.cdiv(N * G, max(blocks))
    block_m = min(size for size in blocks if size * tiles >= N * G)
    block_n, warps, stages = blocks[block_m]
    programs = B * Hkv * tiles
    keys = page_table.shape[1] * page_size
    if sliding_window:
        keys = min(keys, sliding_window)
    wanted = tuning["warps"] // warps * multiprocessors // programs
    splits = max(1, min(wanted, triton.cdiv(keys, block_n), SPLITS))

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    acc, state = out, None
    if splits > 1:
        acc = out.new_empty((B, N, Hq, splits, D), dtype=torch.float32)
        state = out.new_empty((B, N, Hq, splits, 2), dtype=torch.float32)
    _attend[programs, splits](
        q,
        tail_k,
        tail_v,
        k_pages,
        v_pages,
        page_table,
        prefix_lengths,
        tail_mask.contiguous().view(torch.uint8),
        sinks,
        acc,
        state,
        scale,
        softcap or None,
        sliding_window or None,
        N,
        splits,
        *q.stride()[:3],
        *tail_k.stride()[:3],
        *tail_v.stride()[:3],
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        page_table.stride(0),
        Hkv=Hkv,
        G=G,
        D=D,
        PAGE_SIZE=page_size,
        SPLIT=splits > 1,
        BLOCK_D=block_d,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        TAIL_N=16 if N <= 16 else min(block_n, 32),
        num_warps=warps,
        num_stages=stages,
    )
    if splits > 1:
        block_s = min(size for size in MERGED if size >= splits)
        part = min(block_d, MERGED_D)
        _merge[B * N * Hq, triton.cdiv(D, part)](
            acc,
            state,
            sinks,
            out,
            splits,
            Hq=Hq,
            D=D,
            BLOCK_D=part,
            BLOCK_S=block_s,
            num_warps=max(1, block_s * part // 2048),
        )
    return out
