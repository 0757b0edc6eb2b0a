"""How many kernels a step would launch on a GPU, counted on the CPU.

Every op of torch that computes or copies something is a kernel; views and new memory are not. A
launch of a Triton kernel is one, in its interpreter too. Ops of cuBLAS are taken for one kernel.
"""

from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

# What makes memory, or looks at it from the host.
MEMORY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach"}
MEMORY |= {"_local_scalar_dense", "is_same_size", "_unsafe_view", "lift_fresh", "resize_"}


class _Recorded(TorchDispatchMode):
    def __init__(self, names):
        super().__init__()
        self.names = names
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        copies = name == "_to_copy" or not _is_view(func)
        if func.namespace == "aten" and not self.paused and copies and name not in MEMORY:
            self.names.append(name)
        return result


def _is_view(func):
    """Whether an op returns what it was given, in another shape, and writes nothing."""
    of_arguments = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    of_results = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
    return bool(of_results) and not any(alias.is_write for alias in of_arguments)


@contextmanager
def recorded():
    """The names of the kernels that are launched in this context, in order."""
    names = []
    mode = _Recorded(names)
    run = GridExecutor.__call__

    def launch(self, *args, **kwargs):
        names.append(self.fn.__name__)
        mode.paused = True
        try:
            return run(self, *args, **kwargs)
        finally:
            mode.paused = False

    with mock.patch.object(GridExecutor, "__call__", launch), mode:
        yield names


def of_a_step(decode, tokens=3):
    """The kernels of one decode step: what ``decode`` (a number of new tokens) launches more for
    one more token."""
    counts = []
    for count in (tokens, tokens + 1):
        with recorded() as names:
            decode(count)
        counts.append(Counter(names))
    return counts[1] - counts[0]
