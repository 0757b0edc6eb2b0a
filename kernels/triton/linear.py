"""y = x W^T + b for few rows, where nothing matters but how fast W arrives.

    y[m, n] = sum_k x[m, k] * W[n, k] + b[n]        1 <= M <= 64

x [M, K], W [N, K] (the layout of nn.Linear), b [N]: one type, f32, bf16 or f16, accumulated in f32.
Every byte of W is read once, 16 bytes per thread at a time where K and the pointers allow it, and
past the other lines in the cache (evict_first): it will not be wanted again before the next step.

One row goes through ``_one``, a product and a sum per weight, without tensor cores: they would be
fed 15 rows of zeros, and their operands would have to pass through the layouts of a matrix product,
while here a weight goes from its load to the one accumulator of its thread. Programs own a few rows
of W and all of K, so many of them are there at any N and no sum is divided.

Two to 64 rows go through ``_few``, on tensor cores: rows of x padded to 16, 32 or 64. x is read
again by every tile of W's rows, M / BLOCK_N bytes of it per byte of W, from L2; so tiles are wide,
and K is divided among ``splits`` programs per tile to have enough programs. Each leaves its sums
in ``partial``; the one that arrives last at its tile adds them up, in the order of the splits
whoever that is, so a result has the same bits every time. It leaves the counter as it was, at zero,
and a captured CUDA graph needs nothing between two replays. A second kernel for it would cost a
launch per product, which is what a small product lasts.

Floor: N * K * itemsize bytes; M * K and M * N elements, and the partial sums (which stay in L2),
are small beside them. 2 * M * N * K flops.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # of x, at most
ARRIVALS = 4096  # counters: the tiles of W that a product divided along K may have
SPLITS = 8  # at most

# By compute capability, the highest that the device has. "resident": programs that one
# multiprocessor is to have at once. "one": by bytes of an element: K per block, warps, stages of
# the pipeline; "own": rows of W per program, the most that leaves every multiprocessor its resident
# programs. "few": by bytes of an element and padded rows of x: rows of W per tile, K per block,
# warps, stages.
# Not measured: chosen so that nothing spills, two programs fit a multiprocessor and together have
# 32 KB or more of W under way. (bandwidth * latency: 2 to 3.4 TB/s * 0.7 us is 13 to 18 KB for
# each.)
TUNING: dict[tuple[int, int], dict[str, Any]] = {
    (8, 0): {
        "resident": 2,
        "one": {2: (1024, 4, 4), 4: (512, 4, 4)},
        "own": (4, 8),
        "few": {
            (2, 16): (64, 128, 8, 4),
            (2, 32): (64, 128, 8, 3),
            (2, 64): (64, 128, 8, 3),
            (4, 16): (64, 32, 4, 4),
            (4, 32): (64, 32, 4, 4),
            (4, 64): (64, 32, 4, 4),
        },
    },
}
TUNING[9, 0] = TUNING[8, 0]
# What a program's beginning and the way from the first partial sum stored to the first one read
# last, in loads of a block of W; they decide how often K is divided. Not measured.
BEGIN, MERGE = 1.0, 2.0


@triton.jit
def _one(
    x_ptr,  # [K] f32 | bf16 | f16
    w_ptr,  # [N, K] as x, rows of K contiguous
    b_ptr,  # [N] as x, or None
    y_ptr,  # [N] as x
    N,
    K,
    w_stride,
    EVEN: tl.constexpr,  # K is a whole number of blocks
    VECTOR: tl.constexpr,  # elements of 16 bytes
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    real = first + n < N
    k = tl.arange(0, BLOCK_K)
    w_ptr += first.to(tl.int64) * w_stride
    w_at = w_ptr + (n * w_stride)[:, None] + k
    # A thread's 16 bytes are summed in the thread at once: an eighth of the accumulators.
    acc = tl.zeros([BLOCK_N, BLOCK_K // VECTOR], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        within = real[:, None]
        if EVEN:
            x = tl.load(x_ptr + start + k)
        else:
            within = within & (start + k < K)
            x = tl.load(x_ptr + start + k, mask=start + k < K, other=0.0)
        w = tl.load(w_at + start, mask=within, other=0.0, eviction_policy="evict_first")
        product = w.to(tl.float32) * x.to(tl.float32)
        acc += tl.sum(tl.reshape(product, [BLOCK_N, BLOCK_K // VECTOR, VECTOR]), 2)
    y = tl.sum(acc, 1)
    if b_ptr is not None:
        y += tl.load(b_ptr + first + n, mask=real, other=0.0).to(tl.float32)
    tl.store(y_ptr + first + n, y.to(y_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["M"])
def _few(
    x_ptr,  # [M, K] f32 | bf16 | f16, rows of K contiguous
    w_ptr,  # [N, K] as x, rows of K contiguous
    b_ptr,  # [N] as x, or None
    y_ptr,  # [M, N] as x, contiguous
    partial_ptr,  # [SPLITS, M, N] f32; None with one split
    arrivals_ptr,  # [ARRIVALS] i32, zeros; None with one split
    M,
    N,
    K,
    x_stride,
    w_stride,
    SPLITS: tl.constexpr,
    EVEN: tl.constexpr,  # K is a whole number of blocks
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    # The splits of a tile are neighbours, so that they run at one time and the last waits for none.
    tile = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    first = tile * BLOCK_N
    x_at = x_ptr + (m * x_stride)[:, None] + k
    w_at = w_ptr + first.to(tl.int64) * w_stride + (n * w_stride)[:, None] + k
    real = first + n < N

    blocks = tl.cdiv(K, BLOCK_K)
    begin = blocks * split // SPLITS * BLOCK_K
    end = blocks * (split + 1) // SPLITS * BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        x_within = (m < M)[:, None]
        w_within = real[:, None]
        if not EVEN:
            x_within = x_within & (start + k < K)
            w_within = w_within & (start + k < K)
        x = tl.load(x_at + start, mask=x_within, other=0.0)
        w = tl.load(w_at + start, mask=w_within, other=0.0, eviction_policy="evict_first")
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")

    at = m[:, None] * N + (first + n)
    within = (m < M)[:, None] & real
    if SPLITS > 1:
        tl.store(partial_ptr + split * M * N + at, acc, mask=within)
        tl.debug_barrier()  # all threads have stored before one of them says so
        arrived = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if arrived < SPLITS - 1:
            return
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for other in tl.static_range(SPLITS):
            stored = partial_ptr + other * M * N + at
            acc += tl.load(stored, mask=within, other=0.0, cache_modifier=".cg")
        tl.store(arrivals_ptr + tile, 0)
    if b_ptr is not None:
        acc += tl.load(b_ptr + first + n, mask=real, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=within)


def _machine(device: torch.device) -> tuple[tuple[int, int], int]:
    """The compute capability and the multiprocessors of a device; of a small GPU for the
    interpreter."""
    if device.type == "cpu":
        return (8, 0), 8
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def divide(tiles: int, blocks: int, slots: int, sums: float) -> int:
    """In how many splits the blocks of K go, so that the last program ends soonest where ``slots``
    of them run at a time. sums: bytes of a tile's partial sums over those of a block of W."""
    if tiles > ARRIVALS:
        return 1

    def duration(splits: int) -> float:
        merging = MERGE + (1 + splits) * sums if splits > 1 else 0.0
        return triton.cdiv(tiles * splits, slots) * (BEGIN + triton.cdiv(blocks, splits) + merging)

    return min(range(1, min(SPLITS, blocks) + 1), key=duration)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, arrivals: Tensor) -> Tensor:
    """x [..., K] of 1 to 64 rows, any strides; weight [N, K], rows of K contiguous; bias [N]; all
    of one type. Returns [..., N] of that type, in one launch, whose grid comes from shapes alone.

    arrivals [ARRIVALS] i32: zeros, and zeros again afterwards. Two calls that run at the same time
    (on two streams) must not share it."""
    N, K = weight.shape
    rows = x.reshape(-1, K)
    if rows.stride(1) != 1 and K > 1:
        rows = rows.contiguous()
    M = rows.shape[0]
    if not 1 <= M <= ROWS or (weight.stride(1) != 1 and K > 1):
        raise ValueError(
            f"the Triton linear takes 1 to {ROWS} rows and weights whose rows are in one piece, "
            f"not {M} rows and weights of strides {weight.stride()}; use torch's"
        )
    capability, multiprocessors = _machine(x.device)
    tuning = TUNING[max(known for known in TUNING if known <= capability)]
    slots = tuning["resident"] * multiprocessors
    size = x.element_size()
    y = x.new_empty((*x.shape[:-1], N))
    if M == 1:
        block_k, warps, stages = tuning["one"][size]
        enough = [own for own in tuning["own"] if triton.cdiv(N, own) >= slots]
        block_n = max(enough, default=min(tuning["own"]))
        _one[(triton.cdiv(N, block_n),)](
            rows,
            weight,
            bias,
            y,
            N,
            K,
            weight.stride(0),
            EVEN=K % block_k == 0,
            VECTOR=16 // size,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            STAGES=stages,
            num_warps=warps,
        )
        return y
    block_m = max(16, triton.next_power_of_2(M))
    block_n, block_k, warps, stages = tuning["few"][size, block_m]
    tiles = triton.cdiv(N, block_n)
    splits = divide(tiles, triton.cdiv(K, block_k), slots, M * 4 / (block_k * size))
    partial = y.new_empty((splits, M, N), dtype=torch.float32) if splits > 1 else None
    _few[(tiles * splits,)](
        rows,
        weight,
        bias,
        y,
        partial,
        arrivals if splits > 1 else None,
        M,
        N,
        K,
        rows.stride(0),
        weight.stride(0),
        SPLITS=splits,
        EVEN=K % block_k == 0,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        STAGES=stages,
        num_warps=warps,
    )
    return y
