"""The C++ ops for the CPU (csrc/cpu), where the package was built with them.

ARGS_FAST_CPU_LIBRARY names another build of them (`make asan` has one). ARGS_FAST_CPU, which the
library reads at its first call, takes lesser kernels than the processor has: avx512bf16, avx512,
avx2 or baseline.
"""

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import torch

from args_fast.ops.backends import offer
from args_fast.ops.schemas import (
    DECODER_LAYERS,
    FUSED,
    HOLD_LAYERS,
    LINEAR,
    RECORD,
    RELEASE_LAYERS,
    SCHEMAS,
)

_BUILT = Path(__file__).parent.parent / "_cpu.so"
LIBRARY = Path(os.environ.get("ARGS_FAST_CPU_LIBRARY") or _BUILT)

# Held for the life of the process: the schemas go with it.
_library = torch.library.Library("args_fast_cpp", "DEF")


_exists = lru_cache(Path.exists)  # asked for in every step


def status() -> str:
    """ "built", or why there are no C++ ops and how to get them."""
    if _exists(LIBRARY):
        return "built"
    return (
        "not built: the CPU runs plain torch, which is slower. Reinstall with torch and a C++ "
        "compiler present: pip install --no-build-isolation args-fast"
    )


def kernels() -> str:
    """The set of kernels that runs: the best that the processor has, or what ARGS_FAST_CPU asked
    for. "amx", "avx512bf16", "avx512", "avx2" or "baseline"."""
    name = ctypes.CDLL(str(LIBRARY)).args_fast_cpu_kernels
    name.restype = ctypes.c_char_p
    return name().decode()


def load() -> None:
    """Load the library and offer its ops, if it was built."""
    if not LIBRARY.exists():
        return
    built = [op for op in SCHEMAS if op not in FUSED]
    for op in built:
        _library.define(op + SCHEMAS[op])
    _library.define(f"linear{LINEAR}")
    _library.define(f"record{RECORD}")
    _library.define(f"hold_layers{HOLD_LAYERS}")
    _library.define(f"release_layers{RELEASE_LAYERS}")
    _library.define(f"decoder_layers{DECODER_LAYERS}")
    torch.ops.load_library(LIBRARY)
    for op in built:
        offer("cpp", "cpu", op, getattr(torch.ops.args_fast_cpp, op).default)
