"""The products of a decoder layer over M rows, each in one launch with what stands around it.

    _project   q, k, v = rotary(norm(heads of  norm(x) W^T + b))          k and v into the tail
    _feed      inner   = act(norm(x) Wg^T + bg) * (norm(x) Wu^T + bu)     or act(norm(x) Wu^T + bu)
    _add       x      += y W^T + b                                        x normed before, or not
    _begin     x      = rows, or the embeddings of tokens (and of their positions)
    _norm      rows   = norm(x)

x [M, H] f32 is the residual stream. Weights are W [N, K], where they lie: rows of K contiguous
(nn.Linear) or columns of N (GPT-2). f32, bf16 or f16; what is multiplied is of the weights' type,
all sums, norms and activations are f32.

A norm costs no launch and no pass over x: whoever writes a tile of x also writes, for each row, the
mean of its elements and the sum of their squared deviations (for an RMS norm, the sum of squares),
and the product that follows puts those of the row's tiles together and norms x as it loads it.

A product whose N makes too few tiles is divided along K among SPLITS programs. Each leaves its
sums in ``partial``; the one that arrives last adds them up in the order of the splits, applies what
comes after the product, and leaves the counter at zero. A tile of _project is a head, padded to a
power of two, and a rotated element is found by its partner in ``partial``.

An adapter's terms are added by the programs that make the products: see ``layer_terms``.

Tiles are ROWS rows of x high, whatever M is, and how K is divided does not depend on M: a row's sum
is the same in any batch. With more rows than that a program takes a PAIR of tiles, one after the
other, for each block of W that it loads: the second has the names that end in 2. More pairs are
neighbours in the grid, and share W through L2.

With PDL (compute capability 9.0) a program asks for its first weights before it waits for the
kernel before it, and lets the kernel after it begin to do the same.

Floor: N * K * itemsize bytes of weights; what is read again, x by every tile of N, stays in L2.
"""

import triton
import triton.language as tl

from args_fast.kernels.branch_attention import tanh
from args_fast.kernels.layer_terms import _a_at, _a_block, _to_tail, _with_bias, _with_term

ROWS = 16  # of x in a tile: the least that the tensor cores take
M_TILE = tl.constexpr(ROWS)


@triton.jit
def launch_dependents(PDL: tl.constexpr):
    """Let the next kernel begin. It waits before it reads or writes anything but weights, and every
    kernel of a pass waits, so none can overtake the one before the last."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Until all that the kernels before this one have written is there."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def _share(K, row_tiles, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """What a program of a product takes: tile of x, split, tile of W, and the columns of both."""
    row_tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles % SPLITS
    tile = tl.program_id(0) // row_tiles // SPLITS
    blocks = tl.cdiv(K, BLOCK_K)
    begin = blocks * split // SPLITS * BLOCK_K
    end = tl.minimum(blocks * (split + 1) // SPLITS * BLOCK_K, K)
    return row_tile, split, tile, begin, end


@triton.jit
def _row_at(row, stride, COLUMNS: tl.constexpr):
    """Where a row of W begins."""
    if COLUMNS:
        return row.to(tl.int64)
    else:
        return row.to(tl.int64) * stride


@triton.jit
def _column_at(column, stride, COLUMNS: tl.constexpr):
    if COLUMNS:
        return column * stride
    else:
        return column


@triton.jit
def _tile_at(n, k, stride, COLUMNS: tl.constexpr):
    """Where the elements [n, k] of a tile of W are."""
    if COLUMNS:
        return n[:, None] + k * stride
    else:
        return (n * stride)[:, None] + k


@triton.jit
def _prefetch(w_ptr, real, n, w_stride, begin, end, LINES: tl.constexpr):
    """Ask for the first lines of this program's weights: W's rows n from column ``begin`` on."""
    elements: tl.constexpr = 1024 // w_ptr.dtype.element_ty.primitive_bitwidth  # of 128 bytes
    column = begin + tl.arange(0, LINES) * elements
    at = (n * w_stride)[:, None] + column
    address = w_ptr + tl.where(real[:, None] & (column < end), at, 0)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [address.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _norm_of(
    stats_ptr, m, M, H, TILES, eps, RMS: tl.constexpr, WIDTH: tl.constexpr, T: tl.constexpr
):
    """The mean and the factor of each row's norm, from its tiles' means and squares."""
    t = tl.arange(0, T)
    within = (m < M)[:, None] & (t < TILES)
    at = stats_ptr + (m[:, None] * TILES + t) * 2
    squares = tl.load(at + 1, mask=within, other=0.0)
    if RMS:
        mean = tl.zeros([M_TILE], tl.float32)
    else:
        count = tl.minimum(tl.maximum(H - t * WIDTH, 0), WIDTH).to(tl.float32)
        means = tl.load(at, mask=within, other=0.0)
        mean = tl.sum(means * count, 1) / H
        away = means - mean[:, None]
        squares += away * away * count
    return mean, tl.rsqrt(tl.sum(squares, 1) / H + eps)


@triton.jit
def _store_stats(stats_ptr, x, m, M, within, tile, count, TILES, RMS: tl.constexpr):
    """What ``_norm_of`` needs to know of a tile [rows, columns] with ``count`` real columns."""
    x = tl.where(within, x, 0.0)
    at = stats_ptr + (m * TILES + tile) * 2
    if not RMS:
        mean = tl.sum(x, 1) / count
        tl.store(at, mean, mask=m < M)
        x = tl.where(within, x - mean[:, None], 0.0)
    tl.store(at + 1, tl.sum(x * x, 1), mask=m < M)


@triton.jit
def _normed(x, mean, factor, weight_ptr, bias_ptr, column, within):
    """norm(x) of the columns that are loaded, whatever kind of norm it is."""
    gain = _vector(weight_ptr, column, within, 1.0)
    return (x - mean[:, None]) * factor[:, None] * gain + _vector(bias_ptr, column, within, 0.0)


@triton.jit
def _vector(ptr, n, real, absent: tl.constexpr):
    """Elements of a norm's weight or bias in f32; ``absent`` where it has none."""
    if ptr is not None:
        return tl.load(ptr + n, mask=real, other=0.0).to(tl.float32)
    else:
        return tl.full(n.shape, absent, tl.float32)


@triton.jit
def _block(x_at, weight_ptr, bias_ptr, rows, k, start, end, EVEN: tl.constexpr):
    """The columns of x from ``start`` on, and the norm's weight and bias; zeros from ``end`` on.
    Products load them a block ahead: the way from L2 would else be waited for at every block."""
    inside = _inside(k, start, end, EVEN)
    x = tl.load(x_at + start, mask=rows & inside, other=0.0)
    gain = _vector(weight_ptr, start + k, inside, 1.0)
    return x, gain, _vector(bias_ptr, start + k, inside, 0.0)


@triton.jit
def _inside(k, start, end, EVEN: tl.constexpr):
    return tl.full(k.shape, True, tl.int1) & (start < end) if EVEN else start + k < end


@triton.jit
def _leave(partial_ptr, acc, at, within, counter_ptr, SPLITS: tl.constexpr):
    """Store a program's sums. Whether it is the last of its tile."""
    tl.store(partial_ptr + at, acc, mask=within)
    tl.debug_barrier()  # all threads have stored before one of them says so
    if SPLITS == 1:
        return True
    else:
        arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            tl.store(counter_ptr, 0)
        return arrived == SPLITS - 1


@triton.jit
def _collect(partial_ptr, at, within, size, SPLITS: tl.constexpr):
    """The sums of all splits, in order. size: elements of a split."""
    acc = tl.load(partial_ptr + at, mask=within, other=0.0, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        acc += tl.load(
            partial_ptr + split * size + at, mask=within, other=0.0, cache_modifier=".cg"
        )
    return acc


@triton.jit
def _biased(x, bias_ptr, n, real):
    if bias_ptr is not None:
        x += tl.load(bias_ptr + n, mask=real, other=0.0).to(tl.float32)
    return x


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "relu":
        return tl.where(x < 0, 0.0, x)  # a NaN stays one
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit(do_not_specialize=["M", "N", "offset"])
def _begin(
    rows_ptr,  # [M, H] f32 | bf16 | f16; with ids the embeddings of tokens [V, H]
    ids_ptr,  # [B, N] i64, or None
    places_ptr,  # [positions, H] as rows, what is added for a position; or None
    positions_ptr,  # [B, N] i32 | i64; None without places
    x_ptr,  # [M, H] f32
    stats_ptr,  # [M, TILES, 2] f32: mean, and squares of what deviates from it
    M,
    N,
    H,
    TILES,
    offset,  # of the place of position 0
    ids_stride_b,
    ids_stride_n,
    positions_stride_b,
    positions_stride_n,
    RMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    wait(PDL)
    m = tl.program_id(0) * M_TILE + tl.arange(0, M_TILE)
    tile = tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    within = (m < M)[:, None] & (n < H)
    row = m.to(tl.int64)
    if ids_ptr is not None:
        row = tl.load(ids_ptr + m // N * ids_stride_b + m % N * ids_stride_n, mask=m < M, other=0)
    x = tl.load(rows_ptr + row[:, None] * H + n, mask=within, other=0.0).to(tl.float32)
    if places_ptr is not None:
        at = positions_ptr + m // N * positions_stride_b + m % N * positions_stride_n
        place = tl.load(at, mask=m < M, other=0).to(tl.int64) + offset
        x += tl.load(places_ptr + place[:, None] * H + n, mask=within, other=0.0).to(tl.float32)
    tl.store(x_ptr + m[:, None] * H + n, x, mask=within)
    count = tl.minimum(H - tile * BLOCK_N, BLOCK_N)
    _store_stats(stats_ptr, x, m, M, within, tile, count, TILES, RMS)


@triton.jit(do_not_specialize=["M"])
def _norm(
    x_ptr,  # [M, H] f32
    out_ptr,  # [M, H] f32 | bf16 | f16; may be x
    stats_ptr,
    weight_ptr,  # [H] or None
    bias_ptr,  # [H] or None
    M,
    H,
    TILES,
    eps,
    RMS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    wait(PDL)
    m = tl.program_id(0) * M_TILE + tl.arange(0, M_TILE)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mean, factor = _norm_of(stats_ptr, m, M, H, TILES, eps, RMS, WIDTH, STATS)
    at = m[:, None] * H + n
    within = (m < M)[:, None] & (n < H)
    x = tl.load(x_ptr + at, mask=within, other=0.0)
    x = _normed(x, mean, factor, weight_ptr, bias_ptr, n, n < H)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["M", "row_tiles", "first_adapted", "q_rank", "k_rank", "v_rank"])
def _project(
    x_ptr,  # [M, H] f32
    stats_ptr,  # [M, TILES, 2] f32; None without a norm
    norm_weight_ptr,  # [H] as the weights, or None
    norm_bias_ptr,
    wq_ptr,  # [Hq * D, H] f32 | bf16 | f16
    wk_ptr,  # [Hkv * D, H]
    wv_ptr,
    bq_ptr,  # [Hq * D] or None
    bk_ptr,
    bv_ptr,
    q_norm_ptr,  # [D] or None
    k_norm_ptr,
    cos_ptr,  # [M, R] f32, of one half where the adapted rows have a tail of their own; or None
    sin_ptr,
    q_ptr,  # [M, Hq, D] as the weights
    tail_k_ptr,  # [M, Hkv, D] as the weights
    tail_v_ptr,
    adapted_k_ptr,  # [M - first_adapted, Hkv, D], of the adapted rows; or None, and tail_k has them
    adapted_v_ptr,
    q_a_ptr,  # an adapter's terms, see layer_terms; with RANK 0 all are None
    k_a_ptr,
    v_a_ptr,
    q_b_ptr,
    k_b_ptr,
    v_b_ptr,
    q_added_ptr,  # [Hq * D] f32, its biases, or None
    k_added_ptr,
    v_added_ptr,
    partial_ptr,  # [SPLITS, M, (Hq + 2 Hkv) * D] f32
    counters_ptr,  # [heads * row_tiles] i32, zeros
    M,
    H,
    TILES,
    row_tiles,
    first_adapted,  # row
    q_rank,
    k_rank,
    v_rank,
    eps,
    q_stride,  # between the rows of W, or its columns
    kv_stride,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,  # elements of a head that are rotated
    RMS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATS: tl.constexpr,  # the power of two that is not below TILES
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,  # of W are in one piece each, and not its rows
    EVEN: tl.constexpr,  # H is a whole number of blocks
    BLOCK_N: tl.constexpr,  # D, padded to a power of two
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    LINES: tl.constexpr,  # of 128 bytes of a row of W that are asked for ahead
    RANK: tl.constexpr,
    PAIR: tl.constexpr,
    PDL: tl.constexpr,
):
    row_tile, split, head, begin, end = _share(H, row_tiles, SPLITS, BLOCK_K)
    m = row_tile * (1 + PAIR) * M_TILE + tl.arange(0, M_TILE)
    m2 = m + M_TILE
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    real = n < D
    if head < HQ:
        w_stride = q_stride
        w_ptr = wq_ptr + _row_at(head * D, q_stride, COLUMNS)
        if RANK > 0:
            a_ptr, b_ptr, rank = q_a_ptr, q_b_ptr + head * D, q_rank
    elif head < HQ + HKV:
        w_stride = kv_stride
        w_ptr = wk_ptr + _row_at((head - HQ) * D, kv_stride, COLUMNS)
        if RANK > 0:
            a_ptr, b_ptr, rank = k_a_ptr, k_b_ptr + (head - HQ) * D, k_rank
    else:
        w_stride = kv_stride
        w_ptr = wv_ptr + _row_at((head - HQ - HKV) * D, kv_stride, COLUMNS)
        if RANK > 0:
            a_ptr, b_ptr, rank = v_a_ptr, v_b_ptr + (head - HQ - HKV) * D, v_rank
    launch_dependents(PDL)
    if LINES > 0:
        _prefetch(w_ptr, real, n, w_stride, begin, end, LINES)
    wait(PDL)

    if stats_ptr is not None:
        mean, factor = _norm_of(stats_ptr, m, M, H, TILES, eps, RMS, WIDTH, STATS)
        if PAIR:
            mean2, factor2 = _norm_of(stats_ptr, m2, M, H, TILES, eps, RMS, WIDTH, STATS)
    x_at = x_ptr + m[:, None] * H + k
    w_at = w_ptr + _tile_at(n, k, w_stride, COLUMNS)
    acc = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    acc2 = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    if RANK > 0:
        a_at = _a_at(a_ptr, k, H, RANK)
        low = tl.zeros([M_TILE, RANK], tl.float32)
        low2 = tl.zeros([M_TILE, RANK], tl.float32)
    rows = (m < M)[:, None]
    x, gain, shift = _block(x_at, norm_weight_ptr, norm_bias_ptr, rows, k, begin, end, EVEN)
    if PAIR:
        x2_at = x_at + M_TILE * H
        rows2 = (m2 < M)[:, None]
        x2 = tl.load(x2_at + begin, mask=rows2 & _inside(k, begin, end, EVEN), other=0.0)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if COLUMNS:  # whose loads the compiler keeps under way only next to those of x
            x, gain, shift = _block(x_at, norm_weight_ptr, norm_bias_ptr, rows, k, start, end, EVEN)
            if PAIR:
                x2 = tl.load(x2_at + start, mask=rows2 & _inside(k, start, end, EVEN), other=0.0)
        if stats_ptr is not None:
            x = (x - mean[:, None]) * factor[:, None] * gain + shift
            if PAIR:
                x2 = (x2 - mean2[:, None]) * factor2[:, None] * gain + shift
        now = x.to(q_ptr.dtype.element_ty)
        if PAIR:
            now2 = x2.to(q_ptr.dtype.element_ty)
        if not COLUMNS:
            after = start + BLOCK_K
            x, gain, shift = _block(x_at, norm_weight_ptr, norm_bias_ptr, rows, k, after, end, EVEN)
            if PAIR:
                x2 = tl.load(x2_at + after, mask=rows2 & _inside(k, after, end, EVEN), other=0.0)
        w_within = real[:, None]
        if not EVEN:
            w_within = w_within & (start + k < end)
        at = w_at + _column_at(start, w_stride, COLUMNS)
        w = tl.load(at, mask=w_within, other=0.0, eviction_policy="evict_first")
        if RANK > 0:  # before the others, which keeps fewer registers in use
            a = _a_block(a_at, k, start, end, rank, RANK, EVEN)
            low = tl.dot(now, tl.trans(a), low, input_precision="ieee")
        acc = tl.dot(now, tl.trans(w), acc, input_precision="ieee")
        if RANK > 0 and PAIR:
            low2 = tl.dot(now2, tl.trans(a), low2, input_precision="ieee")
        if PAIR:
            acc2 = tl.dot(now2, tl.trans(w), acc2, input_precision="ieee")

    if RANK > 0:
        b_stride = tl.where(head < HQ, HQ * D, HKV * D)
        of_term = b_ptr, b_stride, n, real, rank
        acc = _with_term(acc, low, *of_term, m >= first_adapted, wq_ptr, RANK)
        if PAIR:
            acc2 = _with_term(acc2, low2, *of_term, m2 >= first_adapted, wq_ptr, RANK)
    N: tl.constexpr = (HQ + 2 * HKV) * D
    size = M * N
    column = head * D + n
    if PAIR:
        within2 = (m2 < M)[:, None] & real
        tl.store(partial_ptr + split * size + m2[:, None] * N + column, acc2, mask=within2)
    counter = counters_ptr + head * row_tiles + row_tile
    within = (m < M)[:, None] & real
    at = m[:, None] * N + column
    if not _leave(partial_ptr + split * size, acc, at, within, counter, SPLITS):
        return
    for second in tl.static_range(1 + PAIR):
        if second:
            m = m2
        within = (m < M)[:, None] & real
        adapted = m >= first_adapted
        row_at = m[:, None] * N + head * D
        value = _collect(partial_ptr, row_at + n, within, size, SPLITS)
        if head >= HQ + HKV:
            column = (head - HQ - HKV) * D + n
            value = _biased(value, bv_ptr, column, real)
            value = _with_bias(value, v_added_ptr, column, real, adapted)
            out = value.to(tail_v_ptr.dtype.element_ty)
            _to_tail(tail_v_ptr, adapted_v_ptr, m, first_adapted, column, HKV * D, out, within)
        else:
            partner = tl.where(n < R, tl.where(n < R // 2, n + R // 2, n - R // 2), n)
            other = value
            if R > 0:
                other = _collect(partial_ptr, row_at + partner, within, size, SPLITS)
            if head < HQ:
                first = head * D
                value = _biased(value, bq_ptr, first + n, real)
                other = _biased(other, bq_ptr, first + partner, real)
                value = _with_bias(value, q_added_ptr, first + n, real, adapted)
                other = _with_bias(other, q_added_ptr, first + partner, real, adapted)
                value, other = _head_normed(value, other, q_norm_ptr, n, partner, real, D, eps, RMS)
            else:
                first = (head - HQ) * D
                value = _biased(value, bk_ptr, first + n, real)
                other = _biased(other, bk_ptr, first + partner, real)
                value = _with_bias(value, k_added_ptr, first + n, real, adapted)
                other = _with_bias(other, k_added_ptr, first + partner, real, adapted)
                value, other = _head_normed(value, other, k_norm_ptr, n, partner, real, D, eps, RMS)
            if R > 0:
                turned = (m < M)[:, None] & (n < R)
                place = m
                if adapted_k_ptr is not None:  # both halves stand at the same positions
                    place = tl.where(adapted, m - first_adapted, m)
                cos = tl.load(cos_ptr + place[:, None] * R + n, mask=turned, other=1.0)
                sin = tl.load(sin_ptr + place[:, None] * R + n, mask=turned, other=0.0)
                value = value * cos + tl.where(n < R // 2, -other, other) * sin
            out = value.to(q_ptr.dtype.element_ty)
            if head < HQ:
                tl.store(q_ptr + m[:, None] * (HQ * D) + head * D + n, out, mask=within)
            else:
                column = (head - HQ) * D + n
                _to_tail(tail_k_ptr, adapted_k_ptr, m, first_adapted, column, HKV * D, out, within)


@triton.jit
def _head_normed(
    value, other, weight_ptr, n, partner, real, D: tl.constexpr, eps, RMS: tl.constexpr
):
    """The norm of each head, and of its elements in another order."""
    if weight_ptr is not None:
        mean = tl.zeros([M_TILE], tl.float32)
        if not RMS:
            mean = tl.sum(tl.where(real, value, 0.0), 1) / D
        away = tl.where(real, value - mean[:, None], 0.0)
        factor = tl.rsqrt(tl.sum(away * away, 1) / D + eps)
        value = _normed(value, mean, factor, weight_ptr, None, n, real)
        other = _normed(other, mean, factor, weight_ptr, None, partner, real)
    return value, other


@triton.jit(do_not_specialize=["M", "row_tiles", "first_adapted", "gate_rank", "up_rank"])
def _feed(
    x_ptr,  # [M, H] f32
    stats_ptr,  # [M, TILES, 2] f32
    norm_weight_ptr,  # [H] as the weights, or None
    norm_bias_ptr,
    gate_ptr,  # [F, H] f32 | bf16 | f16, or None
    up_ptr,  # [F, H]
    gate_bias_ptr,  # [F] or None
    up_bias_ptr,
    gate_a_ptr,  # an adapter's terms, see layer_terms; each None where there is none
    up_a_ptr,
    gate_b_ptr,
    up_b_ptr,
    gate_added_ptr,
    up_added_ptr,
    inner_ptr,  # [M, F] as the weights
    partial_ptr,  # [SPLITS, M, F or 2 F] f32
    counters_ptr,  # [tiles * row_tiles] i32, zeros
    M,
    H,
    F,
    TILES,
    row_tiles,
    first_adapted,  # row
    gate_rank,
    up_rank,
    eps,
    w_stride,  # between the rows of W, or its columns
    ACTIVATION: tl.constexpr,
    RMS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    LINES: tl.constexpr,
    RANK: tl.constexpr,
    PAIR: tl.constexpr,
    PDL: tl.constexpr,
):
    row_tile, split, tile, begin, end = _share(H, row_tiles, SPLITS, BLOCK_K)
    m = row_tile * (1 + PAIR) * M_TILE + tl.arange(0, M_TILE)
    m2 = m + M_TILE
    first = tile * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    real = first + n < F
    up_ptr += _row_at(first, w_stride, COLUMNS)
    if gate_ptr is not None:
        gate_ptr += _row_at(first, w_stride, COLUMNS)
    launch_dependents(PDL)
    if LINES > 0:
        _prefetch(up_ptr, real, n, w_stride, begin, end, LINES)
        if gate_ptr is not None:
            _prefetch(gate_ptr, real, n, w_stride, begin, end, LINES)
    wait(PDL)

    if stats_ptr is not None:
        mean, factor = _norm_of(stats_ptr, m, M, H, TILES, eps, RMS, WIDTH, STATS)
        if PAIR:
            mean2, factor2 = _norm_of(stats_ptr, m2, M, H, TILES, eps, RMS, WIDTH, STATS)
    x_at = x_ptr + m[:, None] * H + k
    w_at = _tile_at(n, k, w_stride, COLUMNS)
    up = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    gate = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    up2 = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    gate2 = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    if up_a_ptr is not None:
        up_a_at = _a_at(up_a_ptr, k, H, RANK)
        up_low = tl.zeros([M_TILE, RANK], tl.float32)
        up_low2 = tl.zeros([M_TILE, RANK], tl.float32)
    if gate_a_ptr is not None:
        gate_a_at = _a_at(gate_a_ptr, k, H, RANK)
        gate_low = tl.zeros([M_TILE, RANK], tl.float32)
        gate_low2 = tl.zeros([M_TILE, RANK], tl.float32)
    rows = (m < M)[:, None]
    x, gain, shift = _block(x_at, norm_weight_ptr, norm_bias_ptr, rows, k, begin, end, EVEN)
    if PAIR:
        x2_at = x_at + M_TILE * H
        rows2 = (m2 < M)[:, None]
        x2 = tl.load(x2_at + begin, mask=rows2 & _inside(k, begin, end, EVEN), other=0.0)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if COLUMNS:  # whose loads the compiler keeps under way only next to those of x
            x, gain, shift = _block(x_at, norm_weight_ptr, norm_bias_ptr, rows, k, start, end, EVEN)
            if PAIR:
                x2 = tl.load(x2_at + start, mask=rows2 & _inside(k, start, end, EVEN), other=0.0)
        if stats_ptr is not None:
            x = (x - mean[:, None]) * factor[:, None] * gain + shift
            if PAIR:
                x2 = (x2 - mean2[:, None]) * factor2[:, None] * gain + shift
        now = x.to(up_ptr.dtype.element_ty)
        if PAIR:
            now2 = x2.to(up_ptr.dtype.element_ty)
        if not COLUMNS:
            after = start + BLOCK_K
            x, gain, shift = _block(x_at, norm_weight_ptr, norm_bias_ptr, rows, k, after, end, EVEN)
            if PAIR:
                x2 = tl.load(x2_at + after, mask=rows2 & _inside(k, after, end, EVEN), other=0.0)
        w_within = real[:, None]
        if not EVEN:
            w_within = w_within & (start + k < end)
        at = w_at + _column_at(start, w_stride, COLUMNS)
        if up_a_ptr is not None:  # in an order that keeps few registers in use
            up_a = _a_block(up_a_at, k, start, end, up_rank, RANK, EVEN)
            up_low = tl.dot(now, tl.trans(up_a), up_low, input_precision="ieee")
        if gate_a_ptr is not None:
            gate_a = _a_block(gate_a_at, k, start, end, gate_rank, RANK, EVEN)
            gate_low = tl.dot(now, tl.trans(gate_a), gate_low, input_precision="ieee")
        up_w = tl.load(up_ptr + at, mask=w_within, other=0.0, eviction_policy="evict_first")
        up = tl.dot(now, tl.trans(up_w), up, input_precision="ieee")
        if gate_ptr is not None:
            gate_w = tl.load(gate_ptr + at, mask=w_within, other=0.0, eviction_policy="evict_first")
            gate = tl.dot(now, tl.trans(gate_w), gate, input_precision="ieee")
        if PAIR:
            if up_a_ptr is not None:
                up_low2 = tl.dot(now2, tl.trans(up_a), up_low2, input_precision="ieee")
            if gate_a_ptr is not None:
                gate_low2 = tl.dot(now2, tl.trans(gate_a), gate_low2, input_precision="ieee")
            up2 = tl.dot(now2, tl.trans(up_w), up2, input_precision="ieee")
            if gate_ptr is not None:
                gate2 = tl.dot(now2, tl.trans(gate_w), gate2, input_precision="ieee")

    if up_a_ptr is not None:
        of_term = up_b_ptr + first, F, n, real, up_rank
        up = _with_term(up, up_low, *of_term, m >= first_adapted, up_ptr, RANK)
        if PAIR:
            up2 = _with_term(up2, up_low2, *of_term, m2 >= first_adapted, up_ptr, RANK)
    if gate_a_ptr is not None:
        of_term = gate_b_ptr + first, F, n, real, gate_rank
        gate = _with_term(gate, gate_low, *of_term, m >= first_adapted, up_ptr, RANK)
        if PAIR:
            gate2 = _with_term(gate2, gate_low2, *of_term, m2 >= first_adapted, up_ptr, RANK)
    columns = F
    if gate_ptr is not None:
        columns = 2 * F
    size = M * columns
    if SPLITS > 1:
        left = partial_ptr + split * size + first + n
        within = (m < M)[:, None] & real
        within2 = (m2 < M)[:, None] & real
        if gate_ptr is not None:
            tl.store(left + m[:, None] * columns + F, gate, mask=within)
        if PAIR:
            tl.store(left + m2[:, None] * columns, up2, mask=within2)
            if gate_ptr is not None:
                tl.store(left + m2[:, None] * columns + F, gate2, mask=within2)
        counter = counters_ptr + tile * row_tiles + row_tile
        if not _leave(left, up, m[:, None] * columns, within, counter, SPLITS):
            return
    for second in tl.static_range(1 + PAIR):
        if second:
            m, up, gate = m2, up2, gate2
        within = (m < M)[:, None] & real
        adapted = m >= first_adapted
        if SPLITS > 1:
            at = m[:, None] * columns + first + n
            up = _collect(partial_ptr, at, within, size, SPLITS)
            if gate_ptr is not None:
                gate = _collect(partial_ptr, at + F, within, size, SPLITS)
        up = _biased(up, up_bias_ptr, first + n, real)
        up = _with_bias(up, up_added_ptr, first + n, real, adapted)
        if gate_ptr is not None:
            gate = _biased(gate, gate_bias_ptr, first + n, real)
            gate = _with_bias(gate, gate_added_ptr, first + n, real, adapted)
            inner = _activated(gate, ACTIVATION) * up
        else:
            inner = _activated(up, ACTIVATION)
        at = m[:, None] * F + first + n
        tl.store(inner_ptr + at, inner.to(inner_ptr.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["M", "row_tiles", "first_adapted", "rank"])
def _add(
    y_ptr,  # [M, K] as the weights
    w_ptr,  # [H, K] f32 | bf16 | f16
    bias_ptr,  # [H] or None
    a_ptr,  # an adapter's term, see layer_terms; with RANK 0 None
    b_ptr,
    added_ptr,
    x_ptr,  # [M, H] f32, in place
    stats_ptr,  # [M, TILES, 2] f32 of x before; None where it is not normed before
    norm_weight_ptr,
    norm_bias_ptr,
    new_stats_ptr,  # [M, TILES, 2] f32 of x afterwards
    partial_ptr,  # [SPLITS, M, H] f32
    counters_ptr,  # [TILES * row_tiles] i32, zeros
    M,
    H,
    K,
    TILES,  # ceil(H / BLOCK_N)
    row_tiles,
    first_adapted,  # row
    rank,
    eps,
    w_stride,  # between the rows of W, or its columns
    RMS: tl.constexpr,
    STATS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    LINES: tl.constexpr,
    RANK: tl.constexpr,
    PAIR: tl.constexpr,
    PDL: tl.constexpr,
):
    row_tile, split, tile, begin, end = _share(K, row_tiles, SPLITS, BLOCK_K)
    m = row_tile * (1 + PAIR) * M_TILE + tl.arange(0, M_TILE)
    m2 = m + M_TILE
    first = tile * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    real = first + n < H
    w_ptr += _row_at(first, w_stride, COLUMNS)
    launch_dependents(PDL)
    if LINES > 0:
        _prefetch(w_ptr, real, n, w_stride, begin, end, LINES)
    wait(PDL)

    y_at = y_ptr + m[:, None] * K + k
    w_at = w_ptr + _tile_at(n, k, w_stride, COLUMNS)
    acc = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    acc2 = tl.zeros([M_TILE, BLOCK_N], tl.float32)
    if RANK > 0:
        a_at = _a_at(a_ptr, k, K, RANK)
        low = tl.zeros([M_TILE, RANK], tl.float32)
        low2 = tl.zeros([M_TILE, RANK], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        y_within = (m < M)[:, None]
        y2_within = (m2 < M)[:, None]
        w_within = real[:, None]
        if not EVEN:
            y_within = y_within & (start + k < K)
            y2_within = y2_within & (start + k < K)
            w_within = w_within & (start + k < K)
        y = tl.load(y_at + start, mask=y_within, other=0.0)
        if PAIR:
            y2 = tl.load(y_at + M_TILE * K + start, mask=y2_within, other=0.0)
        at = w_at + _column_at(start, w_stride, COLUMNS)
        w = tl.load(at, mask=w_within, other=0.0, eviction_policy="evict_first")
        if RANK > 0:  # before the others, which keeps fewer registers in use
            a = _a_block(a_at, k, start, end, rank, RANK, EVEN)
            low = tl.dot(y, tl.trans(a), low, input_precision="ieee")
        acc = tl.dot(y, tl.trans(w), acc, input_precision="ieee")
        if RANK > 0 and PAIR:
            low2 = tl.dot(y2, tl.trans(a), low2, input_precision="ieee")
        if PAIR:
            acc2 = tl.dot(y2, tl.trans(w), acc2, input_precision="ieee")

    if RANK > 0:
        of_term = b_ptr + first, H, n, real, rank
        acc = _with_term(acc, low, *of_term, m >= first_adapted, w_ptr, RANK)
        if PAIR:
            acc2 = _with_term(acc2, low2, *of_term, m2 >= first_adapted, w_ptr, RANK)
    size = M * H
    if SPLITS > 1:
        left = partial_ptr + split * size + first + n
        if PAIR:
            tl.store(left + m2[:, None] * H, acc2, mask=(m2 < M)[:, None] & real)
        counter = counters_ptr + tile * row_tiles + row_tile
        within = (m < M)[:, None] & real
        if not _leave(left, acc, m[:, None] * H, within, counter, SPLITS):
            return
    for second in tl.static_range(1 + PAIR):
        if second:
            m, acc = m2, acc2
        within = (m < M)[:, None] & real
        at = m[:, None] * H + first + n
        if SPLITS > 1:
            acc = _collect(partial_ptr, at, within, size, SPLITS)
        acc = _biased(acc, bias_ptr, first + n, real)
        acc = _with_bias(acc, added_ptr, first + n, real, m >= first_adapted)
        x = tl.load(x_ptr + at, mask=within, other=0.0)
        if stats_ptr is not None:
            mean, factor = _norm_of(stats_ptr, m, M, H, TILES, eps, RMS, BLOCK_N, STATS)
            x = _normed(x, mean, factor, norm_weight_ptr, norm_bias_ptr, first + n, real)
        x += acc
        tl.store(x_ptr + at, x, mask=within)
        count = tl.minimum(H - first, BLOCK_N)
        _store_stats(new_stats_ptr, x, m, M, within, tile, count, TILES, RMS)
