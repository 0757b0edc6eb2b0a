"""The candidate that ARGS takes (eq. 2 and, with Gumbel noise, eq. 3 of the paper).

    reward[c] = hidden[c] . head_weight + head_bias
    score[c]  = logprobs[c] + w * reward[c]
    branch    = the first c with the highest score[c] / temperature + noise[c]

Where a reward is not finite or a logprob is NaN the row's score is NaN and its branch 0; its reward
is NaN exactly when a reward was at fault.

Floor: B * k * H * itemsize bytes, read once, and 2 * B * k * H flops. One program per sequence: at
k = 10 and H = 4096 that is 80 KB in 16 bits through one multiprocessor, a few microseconds at most.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from args_fast.kernels.device import too_old

K_LIMIT = 128
# Bytes of the tile [k, part of H] that a program has in flight, and its warps.
# Not measured: chosen for 64 bytes per thread, which fit even where H is odd and loads narrow, and
# for as few turns of the loop as that leaves, because each waits for its loads.
TILE, WARPS = 32768, 16


@triton.jit(do_not_specialize=["k"])
def _select(
    hidden_ptr,  # [B, k, H], rows of H contiguous
    weight_ptr,  # [H]
    bias_ptr,  # [1] or None
    logprobs_ptr,  # [B, k] f32
    w_ptr,  # [B] f32
    temperature_ptr,  # [B] f32
    noise_ptr,  # [B, k] f32
    branch_ptr,  # [B] i64
    reward_ptr,  # [B] f32
    score_ptr,  # [B] f32
    k,
    hidden_stride_b,
    hidden_stride_k,
    logprobs_stride,
    noise_stride,
    H: tl.constexpr,
    K: tl.constexpr,  # the power of two that is not below k
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    candidate = tl.arange(0, K)
    inside = candidate < k
    hidden_ptr += row * hidden_stride_b + candidate[:, None].to(tl.int64) * hidden_stride_k

    partial = tl.zeros([K, BLOCK], tl.float32)
    for start in range(0, H, BLOCK):
        h = start + tl.arange(0, BLOCK)
        weight = tl.load(weight_ptr + h, mask=h < H, other=0.0).to(tl.float32)
        mask = inside[:, None] & (h < H)[None, :]
        hidden = tl.load(hidden_ptr + h[None, :], mask=mask, other=0.0).to(tl.float32)
        partial += hidden * weight[None, :]
    reward = tl.sum(partial, 1)
    if bias_ptr is not None:
        reward += tl.load(bias_ptr).to(tl.float32)

    logprob = tl.load(logprobs_ptr + row * logprobs_stride + candidate, mask=inside, other=0.0)
    noise = tl.load(noise_ptr + row * noise_stride + candidate, mask=inside, other=0.0)
    score = logprob + tl.load(w_ptr + row) * reward
    choice = tl.div_rn(score, tl.load(temperature_ptr + row)) + noise
    # A NaN (of infinities that cancel) counts as the highest, as in torch.argmax.
    choice = tl.where(choice != choice, float("inf"), choice)
    choice = tl.where(inside, choice, float("-inf"))

    # A reward past k is finite wherever head and bias are, and its logprob is 0.
    bad_reward = tl.max((~(tl.abs(reward) < float("inf"))).to(tl.int32), 0) > 0
    broken = bad_reward | (tl.max((logprob != logprob).to(tl.int32), 0) > 0)
    branch = tl.where(broken, 0, tl.argmax(choice, 0, tie_break_left=True))
    chosen = candidate == branch
    reward = tl.sum(tl.where(chosen, reward, 0.0), 0)
    score = tl.sum(tl.where(chosen, score, 0.0), 0)
    tl.store(branch_ptr + row, branch.to(tl.int64))
    tl.store(reward_ptr + row, tl.where(bad_reward, float("nan"), reward))
    tl.store(score_ptr + row, tl.where(broken, float("nan"), score))


def unsupported(hidden: Tensor, *rest: object) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    k = hidden.shape[1]
    if hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 or float16, not {hidden.dtype}"
    if k > K_LIMIT:
        return f"it takes k up to {K_LIMIT}, not {k}"
    return too_old(hidden.device)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def select(
    hidden: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    logprobs: Tensor,
    w: Tensor,
    temperature: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [B, k, H], head_weight [H] and head_bias [1] of any floating dtype; logprobs, noise
    [B, k] f32; w, temperature [B] f32. Returns branch [B] i64, reward and score [B] f32. One
    launch, whose grid depends on the shape alone."""
    B, k, H = hidden.shape
    hidden, logprobs, noise = _rows(hidden), _rows(logprobs), _rows(noise)
    branch = hidden.new_empty(B, dtype=torch.int64)
    reward = hidden.new_empty(B, dtype=torch.float32)
    score = hidden.new_empty(B, dtype=torch.float32)
    K = triton.next_power_of_2(k)
    _select[(B,)](
        hidden,
        head_weight.contiguous(),
        head_bias,
        logprobs,
        w.contiguous(),
        temperature.contiguous(),
        noise,
        branch,
        reward,
        score,
        k,
        hidden.stride(0),
        hidden.stride(1),
        logprobs.stride(0),
        noise.stride(0),
        H=H,
        K=K,
        BLOCK=max(32, min(triton.next_power_of_2(H), TILE // hidden.element_size() // K)),
        num_warps=WARPS,
    )
    return branch, reward, score
