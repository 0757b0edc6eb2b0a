"""The C++ ops of the CPU, for their tests."""

import pytest

from args_fast.ops import backends, cpp

needs_cpp = pytest.mark.skipif(not cpp.LIBRARY.exists(), reason=f"C++ ops: {cpp.status()}")


def op(name):
    return backends.TABLE["cpu"][name]["cpp"]
