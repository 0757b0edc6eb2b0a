"""The end of a step: what was chosen is written down. Apart from the ops of a step, because it
reads nothing of a model: on the CPU it is C++ (csrc/cpu/record.cpp), on CUDA one Triton kernel in
place of seven of torch's (kernels/triton/record.py)."""

from importlib import import_module

import torch
from torch import Tensor

from args_fast.ops import triton
from args_fast.ops.backends import forced_backend
from args_fast.ops.decoder_layers import backend


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
    """Write a step's choice into what the host will read, and count the step, in place.

    Args:
        ids, logprobs: [B, k] i64 and f32, the candidates.
        branch, reward, score: [B] i64, f32 and f32, the candidate that each request takes.
        noise: [B, S, k] f32, the draws of every step; contiguous, like all that follow.
        step_index: [1] i64, the number of this step; one more afterwards.
        token: [B, 1] i64, the token that was chosen.
        tokens, stats: [B, S] i64 and [B, S, 3] f32, whose column of this step is written: the
            token; its logprob, reward and score.
        draws: [B, k] f32, the noise of the next step, if there is one.
    """
    arguments = (ids, logprobs, branch, reward, score, noise, step_index, token, tokens, stats)
    name = _backend(ids.device)
    if name == "cpp":
        torch.ops.args_fast_cpp.record.default(*arguments, draws)
    elif name == "triton":
        with torch.cuda.device_of(ids):  # the kernel goes to the current one; not on the CPU
            import_module("args_fast.kernels.record").record(*arguments, draws)
    else:
        plain(*arguments, draws)


def _backend(device: torch.device) -> str | None:
    """What runs here: on the CPU as for the decoder layers, on CUDA Triton under CUDA's ops too;
    None for plain torch."""
    if device.type == "cpu":
        return backend("cpu")
    built = device.type == "cuda" and forced_backend() != "torch" and triton.status() == "built"
    return "triton" if built else None


def plain(
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
    """What ``record`` means, in plain torch, on any device."""
    index = branch[:, None]
    token.copy_(ids.gather(1, index))
    tokens.index_copy_(1, step_index, token)
    of_step = torch.stack([logprobs.gather(1, index)[:, 0], reward, score], dim=1)
    stats.index_copy_(1, step_index, of_step[:, None])
    step_index.add_(1)
    after = step_index.clamp(max=noise.shape[1] - 1)
    draws.copy_(noise.index_select(1, after)[:, 0])
