"""The parts of the build that need code: the package map (kernels/triton is installed as
args_fast.kernels, bench as args_fast.bench) and the C++ ops, which are optional.

The ops are built against the torch that is importable here (so: pip install --no-build-isolation)
on its stable ABI, and work with every later torch. Without torch or a compiler the package installs
without them; `args-fast doctor` tells.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import find_packages, setup

STABLE_ABI = "0x020b000000000000"  # torch 2.11, the oldest that is supported


def extensions() -> dict:
    """The arguments of setup() that build args_fast/_cpu.so."""
    if importlib.util.find_spec("torch") is None:
        print("args-fast: no torch at build time, so no C++ ops", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # whatever a compiler can do wrong
                print(f"args-fast: installing without the C++ ops: {error}", file=sys.stderr)

        def get_ext_filename(self, fullname: str) -> str:
            # Not a Python module, so it carries no Python version: torch loads it.
            return str(Path(*fullname.split("."))) + ".so"

    cpu = CppExtension(
        "args_fast._cpu",
        [f"csrc/cpu/{name}.cpp" for name in ("ops", "kernels_baseline", "kernels_avx2")],
        depends=[f"csrc/cpu/{name}.h" for name in ("kernels", "kernels_headers", "kernels_impl")],
        extra_compile_args=[
            "-O3",
            "-std=c++20",
            "-fno-math-errno",
            "-Wno-psabi",
            f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
        ],
        py_limited_api=True,
        optional=True,
    )
    return {"ext_modules": [cpu], "cmdclass": {"build_ext": Build}}


setup(
    packages=[
        *find_packages(include=["args_fast", "args_fast.*"]),
        "args_fast.kernels",
        "args_fast.bench",
    ],
    package_dir={
        "args_fast": "args_fast",
        "args_fast.kernels": "kernels/triton",
        "args_fast.bench": "bench",
    },
    package_data={
        "args_fast": ["py.typed"],
        "args_fast.engine": ["linear.json"],
        "args_fast.tiny_pair": ["*.json", "*.jsonl", "lm/*", "rm/*"],
    },
    **extensions(),
)
