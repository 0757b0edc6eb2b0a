"""The C++ ops of the CPU, for their tests."""

import pytest
import torch

from args_fast.ops import backends, cpp

needs_cpp = pytest.mark.skipif(not cpp.LIBRARY.exists(), reason=f"C++ ops: {cpp.status()}")


def op(name):
    return backends.TABLE["cpu"][name]["cpp"]


def with_threads(call, numbers=(1, 2, 3, 7)):
    """What a call returns with each number of threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in numbers:
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results
