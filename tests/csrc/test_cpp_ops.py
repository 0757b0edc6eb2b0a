"""The C++ ops against the plain ones, over the shapes that hurt.

The whole module runs once for each set of kernels: the last test starts it again with ARGS_FAST_CPU
for those that are not the processor's best, and `make asan` runs it against a build with
AddressSanitizer.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from op_cases import (
    CHUNK,
    DTYPES,
    INF,
    NAN,
    SPLIT,
    TOLERANCE,
    attention_case,
    attention_cases,
    bits,
    chain,
    commit_case,
    commit_cases,
    logits,
    random,
    select_cases,
    siblings,
    tree,
)

from args_fast.ops import backends, cpp, plain
from args_fast.ops.schemas import SCHEMAS

pytestmark = pytest.mark.skipif(not cpp.LIBRARY.exists(), reason=f"C++ ops: {cpp.status()}")

ASKED = os.environ.get("ARGS_FAST_CPU")


def op(name):
    return backends.TABLE["cpu"][name]["cpp"]


def kernels():
    name = ctypes.CDLL(str(cpp.LIBRARY)).args_fast_cpu_kernels
    name.restype = ctypes.c_char_p
    return name().decode()


# ---- branch_attention ----------------------------------------------------------------------------


def assert_attention(case, window=0, softcap=0.0, sinks=None, tolerance=None):
    out = op("branch_attention")(*case, window, softcap, sinks)
    wanted = plain.branch_attention(*case, window, softcap, sinks)
    tolerance = tolerance or TOLERANCE[out.dtype]
    torch.testing.assert_close(out, wanted, atol=tolerance, rtol=tolerance)
    assert out.is_contiguous()


@given(attention_cases())
def test_attention_of_any_shape(drawn):
    case, options = drawn
    assert_attention(case, *options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [1, 2, 3, 7, 8, 9, 63, 64, 65, 80, 127, 128, 200, 255, 256])
def test_any_head_size(D, dtype):
    assert_attention(attention_case([37, 0], 5, 4, 2, D, dtype=dtype))


@pytest.mark.parametrize(("Hq", "Hkv"), [(1, 1), (12, 12), (8, 2), (7, 1)])
@pytest.mark.parametrize("N", [1, 3, 4, 5, 40])
def test_any_grouping_of_heads(N, Hq, Hkv):
    assert_attention(attention_case([SPLIT + 5, 3], N, Hq, Hkv, 16))


@pytest.mark.parametrize("mask", [siblings, chain, tree])
@pytest.mark.parametrize("window", [1, 2, 5, 33, SPLIT - 3, SPLIT, SPLIT + 3, 2 * SPLIT])
def test_a_window_that_ends_anywhere_in_a_split(mask, window):
    assert_attention(attention_case([2 * SPLIT + 7, 5, 0], 6, 2, 1, 8, mask=mask(6)), window)


def test_large_scores_do_not_overflow():
    case = attention_case([SPLIT + 9, 30], 5, 4, 2, 8)
    case[0] *= 3e3  # scores of 1e4, whose own rounding is 1e-3
    assert_attention(case, tolerance=1e-2)
    assert_attention(case, 0, 0.0, torch.tensor([-1e4, 0.0, 10.0, 1e4]), tolerance=1e-2)


def test_a_nan_reaches_its_own_rows_and_no_others():
    case = attention_case([40, 40, 300], 4, 4, 2, 8)
    case[0][1, 2, 3, 0] = NAN
    out = op("branch_attention")(*case, 0, 0.0, None)
    wrong = out.isnan().any(dim=3).nonzero().tolist()
    assert wrong == [[1, 2, 3]]


def test_no_sequences_give_no_rows():
    case = attention_case([3], 2, 2, 1, 8)
    for i in (0, 1, 2, 5, 6):
        case[i] = case[i][:0]
    out = op("branch_attention")(*case, 0, 0.0, None)
    assert out.shape == (0, 2, 2, 8)


@given(attention_cases())
def test_attention_has_the_same_bits_with_any_number_of_threads_and_in_any_batch(drawn):
    case, options = drawn
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            outs.append(op("branch_attention")(*case, *options))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(bits(out), bits(outs[0])) for out in outs)
    alone = [case[i][:1] for i in (0, 1, 2)], [case[i][:1] for i in (5, 6)]
    one = op("branch_attention")(*alone[0], *case[3:5], *alone[1], *case[7:], *options)
    assert torch.equal(bits(one), bits(outs[0][:1]))


# ---- topk_logprobs -------------------------------------------------------------------------------


def assert_topk(logits, k):
    logprobs, ids = op("topk_logprobs")(logits, k)
    wanted, wanted_ids = plain.topk_logprobs(logits, k)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(logprobs, wanted, atol=2e-5, rtol=1e-6, equal_nan=True)


@given(logits())
def test_topk_of_any_rows(drawn):
    assert_topk(*drawn)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("V", "k"), [(1, 1), (8, 8), (9, 9), (CHUNK, 128), (CHUNK + 1, 128), (128256, 40)]
)
def test_topk_at_the_borders_of_a_chunk(V, k, dtype):
    assert_topk(random(3, V, seed=V, dtype=dtype) * 5, k)
    assert_topk(torch.zeros(2, V, dtype=dtype), k)
    last = torch.full((1, V), -INF, dtype=dtype)
    last[0, -1] = 2.0
    assert_topk(last, k)


def test_the_best_of_a_row_may_all_lie_in_its_last_chunk():
    rows = torch.arange(3.0 * CHUNK)[None] / 1000
    assert_topk(rows, 128)
    assert_topk(rows.flip(1), 128)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("at", [0, 7, CHUNK, -1])
def test_one_bad_logit_anywhere_breaks_its_row_alone(bad, at):
    rows = random(3, CHUNK + 13)
    rows[1, at] = bad
    assert_topk(rows, 5)
    assert op("topk_logprobs")(rows, 5)[0].isnan().any(dim=1).tolist() == [False, True, False]


@given(logits())
def test_topk_has_the_same_bits_with_any_number_of_threads(drawn):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(op("topk_logprobs")(*drawn))
    finally:
        torch.set_num_threads(before)
    for logprobs, ids in results:
        assert torch.equal(bits(logprobs), bits(results[0][0]))
        assert torch.equal(ids, results[0][1])


# ---- select --------------------------------------------------------------------------------------


@given(select_cases())
def test_select_of_any_shape(case):
    for got, wanted in zip(op("select")(*case), plain.select(*case), strict=True):
        torch.testing.assert_close(got, wanted, atol=0, rtol=0, equal_nan=True)


def test_keys_that_are_infinite_or_nan_are_chosen_as_torch_chooses():
    huge = torch.tensor([[[1.0], [3e38], [2e38]], [[1.0], [0.0], [-1.0]], [[1.0], [2.0], [0.0]]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -2.0], [-INF] * 3])
    ones, w, noise = torch.ones(3), torch.tensor([4.0, INF, 1.0]), torch.zeros(3, 3)
    case = (huge, torch.ones(1), None, logprobs, w, ones, noise)
    for got, wanted in zip(op("select")(*case), plain.select(*case), strict=True):
        torch.testing.assert_close(got, wanted, atol=0, rtol=0, equal_nan=True)


# ---- commit --------------------------------------------------------------------------------------


@given(commit_cases())
def test_commit_of_any_shape(case):
    case[0].flatten()[0] = NAN  # moved like any other value
    wanted = [x.clone() for x in case]
    assert op("commit")(*case) is None
    plain.commit(*wanted)
    for got, expected in zip(case, wanted, strict=True):
        assert torch.equal(bits(got), bits(expected))


# ---- refusals ------------------------------------------------------------------------------------


def good(name):
    """Arguments that an op takes, by name."""
    values = {
        "topk_logprobs": lambda: [random(2, 50), 7],
        "branch_attention": lambda: [*attention_case([17, 20], 3, 4, 2, 8), 0, 0.0, torch.zeros(4)],
        "select": lambda: [
            *(random(2, 3, 8), random(8), random(1), random(2, 3), random(2), torch.ones(2)),
            random(2, 3),
        ],
        "commit": lambda: commit_case([15, 3]),
    }[name]()
    names = [part.split()[1].split("=")[0] for part in SCHEMAS[name].split(") ->")[0].split(", ")]
    return dict(zip(names, values, strict=True))


REFUSED = {
    "topk_logprobs": {
        "k above V": {"k": 51},
        "no k": {"k": 0},
        "a row": {"logits": lambda x: x[0]},
        "no vocabulary": {"logits": lambda x: x[:, :0]},
        "float64": {"logits": lambda x: x.double()},
        "columns": {"logits": lambda x: x[:, ::2]},
    },
    "branch_attention": {
        "q of three dimensions": {"q": lambda x: x[0]},
        "more sequences in q": {"q": lambda x: torch.cat([x, x])},
        "heads that do not group": {"q": lambda x: x[:, :, :3]},
        "another head size": {"q": lambda x: x[..., :7]},
        "fewer sequences in tail_k": {"tail_k": lambda x: x[:1]},
        "fewer rows in tail_k": {"tail_k": lambda x: x[:, :2]},
        "fewer rows in tail_v": {"tail_v": lambda x: x[:, :2]},
        "fewer heads in tail_v": {"tail_v": lambda x: x[:, :, :1]},
        "another dtype": {"tail_v": lambda x: x.half()},
        "fewer pages in v_pages": {"v_pages": lambda x: x[:2]},
        "smaller pages in v_pages": {"v_pages": lambda x: x[:, :8]},
        "another page head size": {"k_pages": lambda x: x[..., :4]},
        "no kv heads": {
            n: lambda x: x[:, :, :0] for n in ("tail_k", "tail_v", "k_pages", "v_pages")
        },
        "a shorter table": {"page_table": lambda x: x[:1]},
        "a narrower table": {"page_table": lambda x: x[:, :1]},
        "a table of i64": {"page_table": lambda x: x.long()},
        "a page beyond the last": {"page_table": lambda x: x + 5},
        "a page before the first": {"page_table": lambda x: x - 9},
        "fewer lengths": {"prefix_lengths": lambda x: x[:1]},
        "a length below 0": {"prefix_lengths": lambda x: x - 18},
        "a length beyond the table": {"prefix_lengths": lambda x: x + 100},
        "lengths of i64": {"prefix_lengths": lambda x: x.long()},
        "a smaller mask": {"tail_mask": lambda x: x[:2, :2].contiguous()},
        "a mask of one row": {"tail_mask": lambda x: x[:1]},
        "a mask of ints": {"tail_mask": lambda x: x.int()},
        "a turned q": {"q": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)},
        "a window below 0": {"sliding_window": -1},
        "fewer sinks": {"sinks": lambda x: x[:3]},
    },
    "select": {
        "two dimensions": {"hidden": lambda x: x[0]},
        "no candidates": {n: lambda x: x[:, :0] for n in ("hidden", "logprobs", "noise")},
        "fewer candidates": {"hidden": lambda x: x[:, :2]},
        "more sequences": {"hidden": lambda x: torch.cat([x, x])},
        "a shorter head": {"head_weight": lambda x: x[:7]},
        "an empty bias": {"head_bias": lambda x: x[:0]},
        "fewer logprobs": {"logprobs": lambda x: x[:, :2].contiguous()},
        "logprobs in 16 bits": {"logprobs": lambda x: x.half()},
        "fewer weights": {"w": lambda x: x[:1]},
        "fewer temperatures": {"temperature": lambda x: x[:1]},
        "less noise": {"noise": lambda x: x[:, :2]},
        "noise of one row": {"noise": lambda x: x[:1]},
        "hidden of ints": {"hidden": lambda x: x.int()},
    },
    "commit": {
        "another tail_v": {"tail_v": lambda x: x[:, :, :2].contiguous()},
        "fewer layers in v_pages": {"v_pages": lambda x: x[:2]},
        "fewer pages in v_pages": {"v_pages": lambda x: x[:, :2].contiguous()},
        "another head size": {"k_pages": lambda x: x[..., :4].contiguous()},
        "another dtype": {"k_pages": lambda x: x.half()},
        "pages with gaps": {"k_pages": lambda x: x.transpose(1, 2)},
        "a branch beyond the tail": {"branch": lambda x: torch.full_like(x, 4)},
        "a branch below 0": {"branch": lambda x: torch.full_like(x, -1)},
        "fewer branches": {"branch": lambda x: x[:1]},
        "a branch of i32": {"branch": lambda x: x.int()},
        "a full table": {"lengths": lambda x: torch.tensor([15, 16], dtype=torch.int32)},
        "a length below 0": {"lengths": lambda x: torch.tensor([3, -1], dtype=torch.int32)},
        "fewer lengths": {"lengths": lambda x: x[:1]},
        "a shorter table": {"page_table": lambda x: x[:1]},
        "a page beyond the last": {"page_table": lambda x: torch.tensor([[1], [3]]).int()},
        "a page before the first": {"page_table": lambda x: torch.tensor([[1], [-1]]).int()},
        "float64": {
            n: lambda x: x.double() for n in ("tail_k", "tail_v", "k_pages", "v_pages")
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_arguments_that_refusals_start_from_are_taken(name):
    op(name)(*good(name).values())


@pytest.mark.parametrize(
    ("name", "why"), [(name, why) for name, cases in REFUSED.items() for why in cases]
)
def test_wrong_arguments_raise_before_any_memory_is_touched(name, why):
    arguments = good(name)
    for argument, change in REFUSED[name][why].items():
        arguments[argument] = change(arguments[argument]) if callable(change) else change
    before = {n: x.clone() for n, x in arguments.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(RuntimeError, match="args_fast: "):
        op(name)(*arguments.values())
    for n, x in before.items():
        torch.testing.assert_close(arguments[n], x, atol=0, rtol=0, equal_nan=True)


# ---- the sets of kernels -------------------------------------------------------------------------


def offered():
    """The kernels that this processor can run, the best first."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if sys.platform == "linux" else set()
    avx2 = {"avx2", "fma"} <= flags
    return ["avx512"] * (avx2 and "avx512f" in flags) + ["avx2"] * avx2 + ["baseline"]


def test_the_kernels_are_the_best_or_the_ones_that_were_asked_for():
    assert kernels() == (ASKED or offered()[0])


@pytest.mark.skipif(ASKED is not None, reason="this is one of the runs that it starts")
@pytest.mark.parametrize("other", offered()[1:])
def test_the_other_kernels_pass_the_same_tests(other):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "ARGS_FAST_CPU": other}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
