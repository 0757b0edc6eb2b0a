"""The Triton ops (kernels/triton), where Triton and a CUDA device are; in Triton's interpreter on
the CPU too, for tests. They are compiled when they are first called."""

import os
from importlib import import_module
from importlib.util import find_spec

import torch

from args_fast.ops.backends import offer

OPS = ("topk_logprobs", "branch_attention", "select", "commit")
INTERPRETER = "TRITON_INTERPRET"  # Triton reads it when it is imported


def interpreted() -> bool:
    """Whether Triton works on the CPU, in its interpreter."""
    return os.environ.get(INTERPRETER) == "1"


def status() -> str:
    """ "built", or why there are no Triton ops and how to get them."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'triton>=3.6' (Linux)"
    if interpreted():
        return "built"
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} has no CUDA, and they run on CUDA devices: install a CUDA "
            f"build of torch. {INTERPRETER}=1 interprets them on the CPU, slowly, for tests"
        )
    if torch.cuda.device_count() == 0:  # asks the driver without making this a CUDA process
        return "torch sees no CUDA device (driver? CUDA_VISIBLE_DEVICES?)"
    return "built"


def load() -> None:
    """Offer the ops where they run. Triton is imported only there."""
    if status() != "built":
        return
    for op in OPS:
        module = import_module(f"args_fast.kernels.{op}")
        run, limit = getattr(module, op), module.unsupported
        for device in ("cpu", "cuda") if interpreted() else ("cuda",):
            offer("triton", device, op, run, unsupported=limit)
