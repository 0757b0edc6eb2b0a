"""The parts of the build that need code: packages, and the C++ and CUDA ops, which are optional.

The ops are built against the torch that is importable here (so: pip install --no-build-isolation)
on its stable ABI, and work with every later torch. The C++ ops want a compiler, the CUDA ops also
nvcc and a CUDA build of torch. What is not there, or fails, is left out and said so; the package
installs in any case, and `args-fast doctor` tells what it has.
"""

import copy
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
SHARED = ["csrc/binding.h", "csrc/types.h"]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # torch 2.11, the oldest that is supported
CPU_FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-Wno-psabi", STABLE_ABI]
# Python's own flags ask for debug information, which is 20 of 23 MB; CFLAGS=-g keeps it.
CPU_FLAGS += [] if "-g" in os.environ.get("CFLAGS", "").split() else ["-g0"]
CUDA_CODE = [  # A100, H100, and what later devices translate for themselves
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
]


def say(message: str) -> None:
    print(f"args-fast: {message}", file=sys.stderr)


def files(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def cpu_ops() -> Extension:
    """args_fast/_cpu.so"""
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "args_fast._cpu",
        files("csrc/cpu/*.cpp"),
        depends=[*SHARED, *files("csrc/cpu/*.h")],
        extra_compile_args=CPU_FLAGS,
        py_limited_api=True,
        optional=True,
    )


def cuda_toolkit(believed: str | None) -> str | None:
    """The folder of a CUDA toolkit that has headers. torch takes the folder two levels above nvcc,
    which is another one where nvcc is a script that starts the real one; nvcc itself knows."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), believed]
    if nvcc := shutil.which("nvcc"):
        command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        roots += re.findall(r"^#\$ TOP=(.+)$", printed, re.MULTILINE)
    for root in filter(None, [*roots, "/usr/local/cuda"]):
        if Path(root, "include", "cuda_runtime_api.h").is_file():
            return os.path.realpath(root)
    return None


def cuda_ops() -> Extension | None:
    """args_fast/_cuda.so, where it can be built."""
    import torch
    from torch.utils import cpp_extension

    if torch.version.cuda is None:
        return say("torch is not a CUDA build, so no CUDA ops")
    root = cuda_toolkit(cpp_extension.CUDA_HOME)
    if root is None:
        return say(f"no CUDA toolkit ({torch.version.cuda}; set CUDA_HOME), so no CUDA ops")
    say(f"CUDA ops are built with the toolkit in {root}")
    cpp_extension.CUDA_HOME = root
    return cpp_extension.CUDAExtension(
        "args_fast._cuda",
        files("csrc/cuda/*.cpp") + files("csrc/cuda/*.cu"),
        depends=[*SHARED, *files("csrc/cuda/*.h"), *files("csrc/cuda/*.cuh")],
        extra_compile_args={
            "cxx": ["-O2", "-std=c++20", STABLE_ABI],
            "nvcc": ["-O3", "-std=c++20", *CUDA_CODE],
        },
        py_limited_api=True,
        optional=True,
    )


def extensions() -> dict:
    """The arguments of setup() that build the ops."""
    if importlib.util.find_spec("torch") is None:
        say("no torch at build time, so no C++ ops and no CUDA ops")
        return {}
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            # One by one, each with a fresh compiler object: torch checks all of them before it
            # builds the first, and one that cannot be built must not take the others along.
            extensions, compiler = self.extensions, self.compiler
            for extension in extensions:
                self.extensions, self.compiler = [extension], copy.copy(compiler)
                try:
                    super().build_extensions()
                except Exception as error:  # whatever a compiler can do wrong
                    say(f"installing without {extension.name}: {error}")
            self.extensions = extensions

        def get_ext_filename(self, fullname: str) -> str:
            # Not a Python module, so it carries no Python version: torch loads it.
            return str(Path(*fullname.split("."))) + ".so"

    found = [extension for extension in (cpu_ops(), cuda_ops()) if extension is not None]
    return {"ext_modules": found, "cmdclass": {"build_ext": Build}}


# args_fast/kernels and args_fast/bench are links to the folders at the top level, so that a module
# has one name for Python, mypy and an editor alike (docs/decisions.md).
setup(
    packages=find_packages(include=["args_fast", "args_fast.*"]),
    include_package_data=False,  # what is listed here, and not all that MANIFEST.in lists
    package_data={
        "args_fast": ["py.typed"],
        "args_fast.eval": ["explain.html"],
        "args_fast.serve": ["playground.html"],
        "args_fast.smollm2": ["*.json", "*.jsonl", "*.md", "*.safetensors", "adapter/*"],
        "args_fast.tiny_pair": ["*.json", "*.jsonl", "lm/*", "rm/*"],
    },
    **extensions(),
)
