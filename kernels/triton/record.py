"""The end of a step: what was chosen is written down, in one launch.

    token[b]     = tokens[b, t] = ids[b, branch[b]]
    stats[b, t]  = logprobs[b, branch[b]], reward[b], score[b]
    draws[b]     = noise[b, t + 1]                    where there is a next step
    step_index   = t + 1                              where t was step_index

A program takes one request. As in args_fast.kernels.commit, reading t and saying so are one atomic
operation: each program adds ARRIVED to step_index, and the last one stores t + 1.

Floor: a few dozen bytes per request.
"""

import triton
import triton.language as tl
from torch import Tensor

ARRIVED = tl.constexpr(1 << 20)  # above any number of steps


@triton.jit(do_not_specialize=["k", "S"])
def _record(
    ids_ptr,  # [B, k] i64, rows ids_stride apart
    logprobs_ptr,  # [B, k] f32, rows logprobs_stride apart
    branch_ptr,  # [B] i64
    reward_ptr,  # [B] f32
    score_ptr,  # [B] f32
    noise_ptr,  # [B, S, k] f32, contiguous
    step_ptr,  # [1] i64
    token_ptr,  # [B, 1] i64
    tokens_ptr,  # [B, S] i64
    stats_ptr,  # [B, S, 3] f32
    draws_ptr,  # [B, k] f32
    S,
    k,
    ids_stride,
    logprobs_stride,
    K: tl.constexpr,  # the power of two that is not below k
):
    b = tl.program_id(0)
    seen = tl.atomic_add(step_ptr, ARRIVED, sem="relaxed")
    t = seen & (ARRIVED - 1)
    if seen // ARRIVED == tl.num_programs(0) - 1:
        tl.store(step_ptr, t + 1)
    branch = tl.load(branch_ptr + b)
    token = tl.load(ids_ptr + b * ids_stride + branch)
    tl.store(token_ptr + b, token)
    tl.store(tokens_ptr + b * S + t, token)
    stats = stats_ptr + (b * S + t) * 3
    tl.store(stats, tl.load(logprobs_ptr + b * logprobs_stride + branch))
    tl.store(stats + 1, tl.load(reward_ptr + b))
    tl.store(stats + 2, tl.load(score_ptr + b))
    if t + 1 < S:
        candidate = tl.arange(0, K)
        draw = tl.load(noise_ptr + (b * S + t + 1) * k + candidate, mask=candidate < k)
        tl.store(draws_ptr + b * k + candidate, draw, mask=candidate < k)


def record(
    ids: Tensor,
    logprobs: Tensor,
    branch: Tensor,
    reward: Tensor,
    score: Tensor,
    noise: Tensor,
    step_index: Tensor,
    token: Tensor,
    tokens: Tensor,
    stats: Tensor,
    draws: Tensor,
) -> None:
    """See args_fast.ops.record.record. One launch, whose grid depends on the shape alone."""
    B, S, k = noise.shape
    ids, logprobs = (x if x.stride(1) == 1 else x.contiguous() for x in (ids, logprobs))
    _record[(B,)](
        ids,
        logprobs,
        branch.contiguous(),
        reward.contiguous(),
        score.contiguous(),
        noise,
        step_index,
        token,
        tokens,
        stats,
        draws,
        S,
        k,
        ids.stride(0),
        logprobs.stride(0),
        K=triton.next_power_of_2(k),
        num_warps=1,
    )
