"""The k most likely tokens of each row, with their log-softmax over the whole vocabulary.

    norm       = log sum_v exp(logits[v])
    ids        = the first k of 0 ... V-1 in the order (logits[v] descending, v ascending)
    logprobs   = logits[ids] - norm

-0.0 ties with 0.0, and -inf is an ordinary logit. A row without a distribution (a NaN, a +inf, or
nothing above -inf) has NaN logprobs and ids 0 ... k-1.

The vocabulary is a tree: a block is 1024 logits, and has 32 groups of 32. One pass over the logits
finds the maximum of every group and block, and of every block the sum of exponentials. The first k
logits then lie in the first k blocks by maximum, and in the first k groups of those: were one of
them in another group, k groups would each hold a logit that comes before it. That holds with ties
too, because the ids of one group are all below those of the next. So the second kernel sorts the
maxima of V / 1024 blocks, those of 32 k groups, and 32 k logits, or fewer. Its keys are integers: a
logit's bits, made monotone, above its place, counted backwards. No two are equal. They have 32 bits
for logits of 16 bits, and 64 bits for logits of 32.

Floor: B * V * itemsize bytes, read once. On top: 32 * k logits per row read again, and 1/32 of the
floor written and partly read. Per logit an exponential, two maxima and a sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from args_fast.kernels.device import machine, too_old, tuned

K_LIMIT = 128
V_LIMIT = 2**21  # a group's number has 16 bits in a key

# By compute capability, the highest that the device has: programs of the first pass take "many"
# blocks where that still leaves "programs" of them, and one otherwise; warps of the first pass;
# warps of the second by the keys that it sorts at a time, the first limit that is not below them.
# Not measured: chosen so that one row fills the device, and for 4 to 16 keys per thread.
TUNING = {
    (8, 0): {"many": 4, "programs": 512, "warps": 4, "choose_warps": {1024: 4, 4096: 8}},
    (9, 0): {"many": 4, "programs": 512, "warps": 4, "choose_warps": {1024: 4, 4096: 8}},
}


@triton.jit
def _scan(
    logits_ptr,  # [B, V] f32 | bf16 | f16, rows row_stride apart
    group_max_ptr,  # [B, blocks, 32] as the logits, blocks = programs of a row * BLOCKS
    block_max_ptr,  # [B, blocks] f32
    block_sum_ptr,  # [B, blocks] f32: sum of exp(logit - block_max), a block_max of -inf taken as 0
    V,
    row_stride,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.num_programs(1) * BLOCKS
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    group = block[:, None] * 32 + tl.arange(0, 32)
    ids = group[:, :, None] * 32 + tl.arange(0, 32)
    x = tl.load(logits_ptr + row * row_stride + ids, mask=ids < V, other=float("-inf"))
    x = x.to(tl.float32)

    # A maximum may pass over a NaN; the sum does not, and with a +inf it is NaN too (inf - inf).
    group_max = tl.max(x, 2)
    block_max = tl.max(group_max, 1)
    base = tl.where(block_max == float("-inf"), 0.0, block_max)
    block_sum = tl.sum(tl.sum(tl.exp(x - base[:, None, None]), 2), 1)

    group_max = group_max.to(group_max_ptr.dtype.element_ty)
    tl.store(group_max_ptr + row * blocks * 32 + group, group_max)
    tl.store(block_max_ptr + row * blocks + block, block_max)
    tl.store(block_sum_ptr + row * blocks + block, block_sum)


@triton.constexpr_function
def _log2(n):
    return n.bit_length() - 1


@triton.constexpr_function
def _along(bit, n):
    """The shape of a pair along one bit of a place, where the place has n bits, each an axis."""
    return [1] * (n - 1 - bit) + [2] + [1] * bit


@triton.jit
def _largest(x, K: tl.constexpr):
    """The K largest of a row of integers, descending. Sizes are powers of two.

    A bitonic sort of runs of K, every other one ascending; then the larger of each pair out of two
    neighbouring runs are the K largest of both, and only want merging. It is tl.topk, except that
    the other of a pair comes from a sum, which costs as much as its exclusive or, and which the
    interpreter does not do element by element.
    """
    LOG_N: tl.constexpr = _log2(x.numel)
    LOG_K: tl.constexpr = _log2(K)
    if LOG_K == 0:
        return tl.max(x, 0, keep_dims=True)
    else:
        pair = tl.arange(0, 2)
        x = tl.reshape(x, [2] * LOG_N)
        for bits in tl.static_range(1, LOG_K + 1):
            ascends = tl.reshape(pair, _along(bits, LOG_N)) if bits < LOG_N else 0
            for i in tl.static_range(1, bits + 1):
                other = tl.sum(x, LOG_N - 1 - bits + i, keep_dims=True) - x
                second = tl.reshape(pair, _along(bits - i, LOG_N))
                x = tl.where((other > x) != (ascends ^ second), other, x)
        for n in tl.static_range(LOG_N - 1, LOG_K - 1, -1):
            x = tl.max(x, n - LOG_K)
            ascends = tl.reshape(pair, _along(LOG_K, n)) if n > LOG_K else 0
            for i in tl.static_range(1, LOG_K + 1):
                other = tl.sum(x, n - 1 - LOG_K + i, keep_dims=True) - x
                second = tl.reshape(pair, _along(LOG_K - i, n))
                x = tl.where((other > x) != (ascends ^ second), other, x)
        return tl.reshape(x, [K])


@triton.jit
def _first(x, place, K: tl.constexpr):
    """The first K of a row of logits, highest first and then lowest place (16 bits), as keys."""
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    else:
        bits = x.to(tl.int16, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFF, bits).to(tl.int32)
    order = tl.where(order == -1, 0, order)  # -0.0
    return _largest((order << 16) | (0xFFFF - place), K)


@triton.jit
def _place(keys):
    return 0xFFFF - (keys & 0xFFFF).to(tl.int32)


@triton.jit
def _logit(keys, dtype: tl.constexpr):
    order = keys >> 16
    if dtype == tl.float32:
        order = order.to(tl.int32)
        bits = tl.where(order < 0, order ^ 0x7FFFFFFF, order)
    else:
        order = order.to(tl.int16)
        bits = tl.where(order < 0, order ^ 0x7FFF, order)
    return bits.to(dtype, bitcast=True).to(tl.float32)


@triton.jit(do_not_specialize=["blocks", "k"])
def _choose(
    logits_ptr,  # [B, V] f32 | bf16 | f16, rows row_stride apart
    group_max_ptr,  # [B, blocks, 32] as the logits
    block_max_ptr,  # [B, blocks] f32
    block_sum_ptr,  # [B, blocks] f32
    logprobs_ptr,  # [B, k] f32
    ids_ptr,  # [B, k] i64
    V,
    row_stride,
    blocks,
    k,
    BLOCKS: tl.constexpr,  # the power of two that is not below blocks
    K: tl.constexpr,  # the power of two that is not below k
):
    dtype: tl.constexpr = logits_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    at = row * blocks + block
    block_max = tl.load(block_max_ptr + at, mask=block < blocks, other=float("-inf"))
    block_sum = tl.load(block_sum_ptr + at, mask=block < blocks, other=0.0)
    highest = tl.max(block_max, 0)
    log_sum = tl.log(tl.sum(block_sum * tl.exp(block_max - highest), 0))

    # What is past the end is -inf in a later place than any logit: never chosen before one.
    if BLOCKS > K:
        block = _place(_first(block_max.to(dtype), block, K))
    group = block[:, None] * 32 + tl.arange(0, 32)
    if group.numel > K:
        at = row * blocks * 32 + group
        group_max = tl.load(group_max_ptr + at, mask=group < blocks * 32, other=float("-inf"))
        keys = _first(tl.ravel(group_max), tl.ravel(group), K)
        # In ascending order again: then the order of places below is the order of ids.
        group = -_largest(-_place(keys), K)
    else:
        group = tl.ravel(group)
    ids = group[:, None] * 32 + tl.arange(0, 32)
    x = tl.load(logits_ptr + row * row_stride + ids, mask=ids < V, other=float("-inf"))
    keys = _first(tl.ravel(x), tl.arange(0, x.numel), K)

    place = _place(keys)
    ids = tl.gather(group, place // 32, 0) * 32 + place % 32
    logprobs = (_logit(keys, dtype) - highest) - log_sum
    candidate = tl.arange(0, K)
    # The sum of a row without a distribution is NaN: that of its blocks, or from -inf - -inf.
    whole = log_sum == log_sum
    logprobs = tl.where(whole, logprobs, float("nan"))
    ids = tl.where(whole, ids, candidate).to(tl.int64)
    tl.store(logprobs_ptr + row * k + candidate, logprobs, mask=candidate < k)
    tl.store(ids_ptr + row * k + candidate, ids, mask=candidate < k)


def unsupported(logits: Tensor, k: int) -> str | None:
    """Why the kernels cannot take these arguments, or None."""
    V = logits.shape[1]
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 or float16, not {logits.dtype}"
    if not 1 <= k <= min(V, K_LIMIT):
        return f"it takes k from 1 to min(V, {K_LIMIT}), not k = {k} of V = {V} logits"
    if V > V_LIMIT:
        return f"it takes up to {V_LIMIT} logits, not {V}"
    return too_old(logits.device)


def topk_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """logits [B, V] f32, bf16 or f16; k from 1 to min(V, 128). Returns logprobs [B, k] f32,
    descending, and ids [B, k] i64. Two launches, whose grids depend on the shape alone."""
    B, V = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    row_stride = logits.stride(0) if B > 1 else 0  # 0 is a multiple of 16, so loads are wide

    tuning = tuned(TUNING, machine(logits.device)[0])
    blocks = triton.cdiv(V, 1024)
    many = tuning["many"]
    per_program = many if B * triton.cdiv(blocks, many) >= tuning["programs"] else 1
    programs = triton.cdiv(blocks, per_program)
    blocks = programs * per_program
    group_max = logits.new_empty(B, blocks, 32)
    block_max = logits.new_empty(B, blocks, dtype=torch.float32)
    block_sum = logits.new_empty(B, blocks, dtype=torch.float32)
    logprobs = logits.new_empty(B, k, dtype=torch.float32)
    ids = logits.new_empty(B, k, dtype=torch.int64)

    _scan[(B, programs)](
        logits,
        group_max,
        block_max,
        block_sum,
        V,
        row_stride,
        BLOCKS=per_program,
        num_warps=tuning["warps"],
    )
    BLOCKS, K = triton.next_power_of_2(blocks), triton.next_power_of_2(k)
    _choose[(B,)](
        logits,
        group_max,
        block_max,
        block_sum,
        logprobs,
        ids,
        V,
        row_stride,
        blocks,
        k,
        BLOCKS=BLOCKS,
        K=K,
        num_warps=next(w for keys, w in tuning["choose_warps"].items() if keys >= 32 * K),
    )
    return logprobs, ids
