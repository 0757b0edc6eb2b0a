"""The C++ ops give back what they allocate, and what their arguments are converted to."""

import ctypes
import gc

import pytest
import torch
from cpp_ops import needs_cpp, op
from layer_cases import LLAMA, OPT, layers_case
from op_cases import attention_case, commit_case, random

from args_fast.ops.decoder_layers import decoder_layers

LIBC = ctypes.CDLL(None)
CALLS = 1000

pytestmark = [
    needs_cpp,
    pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="needs glibc's mallinfo2"),
]


class MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated():
    """Bytes that malloc has given out."""
    gc.collect()
    LIBC.mallinfo2.restype = MallInfo
    return LIBC.mallinfo2().uordblks


def committed(*arguments):
    op("commit")(*arguments[:-1], arguments[-1].clone())  # the lengths grow


def layers_of_new_lists(hidden, weights, *others):
    decoder_layers()(hidden, list(weights), *others)


CASES = {
    "llama": lambda: (decoder_layers(), layers_case([5], 2, **LLAMA)),
    "opt": lambda: (decoder_layers(), layers_case([5], 2, **OPT)),
    "adapted": lambda: (decoder_layers(), layers_case([5], 2, **LLAMA, ranks=[3])),
    "new lists": lambda: (layers_of_new_lists, layers_case([5], 2, **LLAMA)),
    "linear": lambda: (
        torch.ops.args_fast_cpp.linear.default,
        (random(3, 16), random(8, 16), random(8), None),
    ),
    "topk_logprobs": lambda: (op("topk_logprobs"), (random(2, 50), 5)),
    "branch_attention": lambda: (
        op("branch_attention"),
        [*attention_case([5], 2, 2, 1, 8), 0, 0.0, None],
    ),
    "commit": lambda: (committed, commit_case([5])),
}


@pytest.mark.parametrize("name", CASES)
def test_op_gives_back_what_it_allocates(name):
    function, arguments = CASES[name]()

    def call(times):
        for _ in range(times):
            function(*arguments)
        return allocated()

    call(CALLS)  # what is allocated once
    before = call(CALLS)
    assert call(CALLS) - before < 16 * CALLS  # a string that torch forgot was 48 bytes
