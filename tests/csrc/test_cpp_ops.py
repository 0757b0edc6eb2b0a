"""The sets of kernels that the C++ ops have: which one runs, and that each passes every test.

The last test starts the tests of all C++ ops again, with ARGS_FAST_CPU for each set that is not the
processor's best, and `make asan` runs them against a build with AddressSanitizer.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_ops import needs_cpp

from args_fast.ops import cpp

pytestmark = needs_cpp

ASKED = os.environ.get("ARGS_FAST_CPU")


FLAGS = set(Path("/proc/cpuinfo").read_text().split()) if sys.platform == "linux" else set()


def runnable():
    """The kernels that this processor can run, the best first."""
    pairs = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
    wanted = {
        "amx": {*pairs, "amx_tile", "amx_bf16"},
        "avx512bf16": pairs,
        "avx512": {"avx512f"},
        "avx2": set(),
    }
    has = {"avx2", "fma"} <= FLAGS
    return [name for name, more in wanted.items() if has and more <= FLAGS] + ["baseline"]


def best():
    """Kernels of pairs fetch weights in a way that is slow on Intel's processors."""
    slow = set() if "AuthenticAMD" in FLAGS else {"avx512bf16"}
    return next(name for name in runnable() if name not in slow)


def test_the_kernels_are_the_best_or_the_ones_that_were_asked_for():
    assert cpp.kernels() == (ASKED or best())


@pytest.mark.skipif(ASKED is not None, reason="this is one of the runs that it starts")
@pytest.mark.parametrize("other", [name for name in runnable() if name != best()])
def test_the_other_kernels_pass_the_same_tests(other):
    modules = sorted(Path(__file__).parent.glob("test_cpp_*.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, modules)]
    profile = {"HYPOTHESIS_PROFILE": "quick"} if "HYPOTHESIS_PROFILE" not in os.environ else {}
    environment = {**os.environ, "ARGS_FAST_CPU": other, **profile}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
