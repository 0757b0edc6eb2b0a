"""The CUDA ops on the CPU: csrc/cuda compiled by the C++ compiler against emulated/, where a block
is a set of fibers (see emulated/cuda_runtime.h), and registered as torch.ops.args_fast_emulated."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from args_fast.ops.cuda import OPS
from args_fast.ops.schemas import SCHEMAS

ROOT = Path(__file__).parents[2]
EMULATED = ROOT / "tests/csrc/emulated"
SOURCES = [
    *(ROOT / "csrc/cuda" / f"{op}.cu" for op in OPS),
    EMULATED / "emulated.cpp",
    EMULATED / "ops.cpp",
]
FLAGS = [
    *("-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas"),
    # Traps: a load of 16 bytes that is not aligned to them, a shift too far, an index outside.
    *("-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fno-sanitize-recover=all"),
    "-fsanitize-undefined-trap-on-error",
    "-U_FORTIFY_SOURCE",  # takes a jump from one stack to another for an accident
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]

_library = torch.library.Library("args_fast_emulated", "DEF")


@functools.cache
def _emulated() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("running CUDA kernels on the CPU needs Linux and a C++ compiler")
    for op in OPS:
        _library.define(op + SCHEMAS[op])
    include = [EMULATED, ROOT / "csrc/cuda", *include_paths()]
    link = [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "emulated.so")
        command = [*shlex.split(compiler), *FLAGS, *(f"-I{path}" for path in include), "-x", "c++"]
        subprocess.run([*command, *SOURCES, "-o", built, "-x", "none", *link], check=True)
        torch.ops.load_library(built)
        return ctypes.CDLL(str(built))


def emulated(op: str, *, seed: int = 0, multiprocessors: int = 132) -> Callable:
    """The op, run with threads and blocks in the order that the seed gives, on a device with that
    many multiprocessors."""
    library = _emulated()

    def run(*args: object) -> object:
        library.emulate(ctypes.c_uint32(seed), multiprocessors)
        return getattr(torch.ops.args_fast_emulated, op)(*args)

    return run
