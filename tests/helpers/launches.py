"""How many kernels a step would launch on a GPU, counted on the CPU.

Every op of torch that computes or copies something is a kernel; views and new memory are not. A
launch of a Triton kernel is one, in its interpreter too. A product of cuBLAS, and each of our ops
in another language, is taken for one.
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

# What makes memory, or is looked at by the host.
MEMORY = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "detach_", "item"}
OURS = "args_fast"  # whose ops launch Triton kernels, which are counted themselves


_open = []  # what records kernels now


def count_as_one(name, function):
    """The function, which stands for one kernel; what it computes with is not counted."""

    def run(*args):
        with ExitStack() as stack:
            for mode in _open:
                mode.names.append(name)
                stack.enter_context(mode.pause())
            return function(*args)

    return run


class _Recorded(TorchDispatchMode):
    def __init__(self, names):
        super().__init__()
        self.names = names
        self.paused = False

    @contextmanager
    def pause(self):
        """Count nothing in this context."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        counted = not self.paused and name not in MEMORY and func.namespace != OURS
        if counted and not _is_view(func, result, args):
            self.names.append(name)
        return result


def _is_view(func, result, args):
    """Whether an op returned memory that it was given, and wrote nothing."""
    writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
    if writes or not isinstance(result, Tensor) or not args or not isinstance(args[0], Tensor):
        return False
    return result.untyped_storage()._cdata == args[0].untyped_storage()._cdata


@contextmanager
def recorded():
    """The names of the kernels that are launched in this context, in order."""
    names = []
    mode = _Recorded(names)
    run = GridExecutor.__call__

    def launch(self, *args, **kwargs):
        names.append(self.fn.__name__)
        with mode.pause():
            return run(self, *args, **kwargs)

    _open.append(mode)
    try:
        with mock.patch.object(GridExecutor, "__call__", launch), mode:
            yield names
    finally:
        _open.remove(mode)


@contextmanager
def steps_recorded():
    """The kernels of each decode step of the engine in this context."""
    from args_fast.engine import runner

    step, steps = runner.step, []

    def recording(*args):
        with recorded() as names:
            step(*args)
        steps.append(names)

    with mock.patch.object(runner, "step", recording):
        yield steps
