"""Every backend that a device offers against the plain ops on the CPU, on the same inputs.

The device is CUDA. ARGS_FAST_TEST_DEVICE=cpu runs the same on the backends of the CPU, which is how
these tests are themselves tested where there is no GPU.
"""

import os
from pathlib import Path

import op_cases
import pytest
import torch
from hypothesis import given, settings

from args_fast.ops import plain
from args_fast.ops.backends import TABLE
from args_fast.ops.schemas import SCHEMAS

DEVICE = os.environ.get("ARGS_FAST_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device here"
)
GOLDEN = Path(__file__).parents[1] / "golden"
# SideStream one unit in the last place: exponentials and sums as a GPU does them, but not TF32.
TOLERANCE = {**op_cases.TOLERANCE, torch.float32: 1e-4}
# Triton compiles a kernel for every new shape, which takes longer than all else here: 0.3 to 3
# seconds each.
few = settings(max_examples=15)
some = settings(max_examples=30)


def backends(op):
    return pytest.mark.parametrize("backend", TABLE[DEVICE].get(op, {}))


def moved(arguments):
    """The arguments on the device, with the strides that they have."""
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in arguments]


def assert_equal(got, wanted, tolerance=0.0):
    for a, b in zip(got, wanted, strict=True):
        assert a.device.type == DEVICE
        torch.testing.assert_close(a.cpu(), b, atol=tolerance, rtol=tolerance, equal_nan=True)


@backends("branch_attention")
@few
@given(op_cases.attention_cases())
def test_branch_attention(backend, drawn):
    case, options = drawn
    arguments = (*case, *options)
    out = TABLE[DEVICE]["branch_attention"][backend](*moved(arguments))
    assert_equal([out], [plain.branch_attention(*arguments)], TOLERANCE[out.dtype])


# Sizes at which the prefix is divided among many programs, and the states of all are merged.
LONG = {"t": [4096, 5003], "N": [1, 10], "heads": [(4, 4, 64), (8, 2, 128), (4, 4, 80)]}


@backends("branch_attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("Hq", "Hkv", "D"), LONG["heads"])
@pytest.mark.parametrize("N", LONG["N"])
@pytest.mark.parametrize("t", LONG["t"])
def test_a_long_prefix_of_one_sequence(backend, t, N, Hq, Hkv, D, dtype):
    case = op_cases.attention_case([t], N, Hq, Hkv, D, dtype=dtype, seed=t)
    arguments = (*case, 0, 0.0, None)
    out = TABLE[DEVICE]["branch_attention"][backend](*moved(arguments))
    assert_equal([out], [plain.branch_attention(*arguments)], TOLERANCE[dtype])


@backends("topk_logprobs")
@few
@given(op_cases.logits())
def test_topk_logprobs(backend, drawn):
    rows, k = drawn[0], min(drawn[1], 128)
    logprobs, ids = TABLE[DEVICE]["topk_logprobs"][backend](*moved([rows, k]))
    wanted, wanted_ids = plain.topk_logprobs(rows, k)
    assert_equal([ids], [wanted_ids])
    assert_equal([logprobs], [wanted], 5e-5)


@backends("select")
@some
@given(op_cases.select_cases())
def test_select(backend, case):
    # The inputs are such that every sum is exact.
    assert_equal(TABLE[DEVICE]["select"][backend](*moved(case)), plain.select(*case))


@backends("commit")
@some
@given(op_cases.commit_cases())
def test_commit(backend, case):
    arguments = moved(case)
    arguments = [x.clone() for x in arguments]
    assert TABLE[DEVICE]["commit"][backend](*arguments) is None
    plain.commit(*case)
    assert_equal(arguments, case)


@pytest.mark.skipif("select_commit" not in SCHEMAS, reason="there is no such op")
@backends("select_commit")
@some
@given(op_cases.select_commit_cases())
def test_select_commit(backend, case):
    arguments = [x.clone() if isinstance(x, torch.Tensor) else x for x in moved(case)]
    out = TABLE[DEVICE]["select_commit"][backend](*arguments)
    chosen, (tail_k, tail_v, *cache) = case[:7], case[7:]
    wanted = plain.select(*chosen)
    plain.commit(tail_k, tail_v, wanted[0], *cache)
    assert_equal(out, wanted)
    assert_equal(arguments[7:], case[7:])


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_every_op_has_a_backend_of_its_own_there(op):
    assert set(TABLE[DEVICE][op]) - {"torch"}


@pytest.mark.skipif(DEVICE == "cpu", reason="tests/test_golden.py is that")
def test_the_engine_gives_the_published_tokens():
    import published_decodes

    assert published_decodes.check(GOLDEN, DEVICE) == []
