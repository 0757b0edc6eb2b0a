"""The CUDA C++ ops (csrc/cuda), where the package was built with them and a device can run them."""

import warnings
from pathlib import Path

import torch

from args_fast.ops.backends import offer
from args_fast.ops.schemas import SCHEMAS

LIBRARY = Path(__file__).parent.parent / "_cuda.so"
OPS = ("topk_logprobs", "select_commit")
CAPABILITY = (8, 0)  # the oldest that setup.py builds for

# Held for the life of the process: the schemas go with it.
_library = torch.library.Library("args_fast_cuda", "DEF")
_refused = ""  # why a library that is there could not be loaded


def status() -> str:
    """ "built", or why there are no CUDA ops and how to get them."""
    if torch.version.cuda is None:
        return "not built: they need a CUDA build of torch"
    if not LIBRARY.exists():
        return (
            "not built: the GPU runs Triton, which needs more launches. Reinstall with the CUDA "
            f"toolkit {torch.version.cuda} present (nvcc on PATH, or CUDA_HOME): "
            "pip install --no-build-isolation args-fast"
        )
    if not torch.cuda.is_available():
        return "built, but torch sees no device"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return "built, but the device is older than compute capability 8.0"
    return _refused or "built"


def load() -> None:
    """Load the library and offer its ops, if it was built and there is a device for it.

    Built against another torch or CUDA it may not load any more: that is a warning, because
    everything works without it."""
    global _refused
    if status() != "built":
        return
    for op in OPS:
        _library.define(op + SCHEMAS[op])
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:
        _refused = f"built, but it cannot be loaded; reinstall args-fast with this torch: {error}"
        warnings.warn(f"the CUDA ops were {_refused}", stacklevel=2)
        return
    for op in OPS:
        implementation = getattr(torch.ops.args_fast_cuda, op).default
        offer("cuda", "cuda", op, implementation, unsupported=_unsupported)


def _unsupported(*arguments: object) -> str | None:
    tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return "it takes float32, bfloat16 and float16, not float64"
    return None
