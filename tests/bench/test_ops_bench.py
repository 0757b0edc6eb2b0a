"""The benchmark of the ops: what is wrong is not timed, and a run continues where one stopped."""

import pytest
import torch

from args_fast.bench import ops_bench, ops_cases
from args_fast.ops import backends, cpp, plain
from args_fast.ops.schemas import SCHEMAS

CPU = torch.device("cpu")


@pytest.fixture
def offered():
    """Lets a test offer a backend, and takes it back."""
    before = {op: dict(found) for op, found in backends.TABLE["cpu"].items()}
    yield backends.TABLE["cpu"]
    backends.TABLE["cpu"].update(before)


def run(folder, **more):
    options = {"seconds": 60, "toy": True, "op": "select"}
    return ops_bench.run(CPU, folder, **{**options, **more})


def test_an_implementation_that_is_wrong_is_not_timed(tmp_path, offered):
    def wrong(*arguments):
        branch, reward, score = plain.select(*arguments)
        return branch, reward + 0.5, score

    def broken(*arguments):
        raise RuntimeError("no")

    offered["select"] |= {"wrong": wrong, "broken": broken}
    file, document = run(tmp_path)
    rows = {row["name"]: row for row in document["cases"][0]["rows"]}
    assert (rows["wrong"]["status"], rows["broken"]["status"]) == ("wrong", "failed")
    assert rows["wrong"]["eager"] is None
    assert rows["torch"]["eager"]["median"] > 0
    assert len(ops_bench.failures(document)) == 2
    assert "differs from plain by up to 0.5" in file.with_suffix(".md").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_products_are_compared_in_a_type(tmp_path, dtype):
    if cpp.status() != "built":
        pytest.skip(cpp.status())
    file, document = run(tmp_path, op="linear", dtype=dtype, timed=False)
    statuses = [row["status"] for case in document["cases"] for row in case["rows"]]
    assert statuses
    assert set(statuses) == {"checked"}
    assert str(dtype).removeprefix("torch.") in file.name


def test_wrong_writes_are_seen(tmp_path, offered):
    def lazy(tail_k, tail_v, branch, k_pages, v_pages, table, lengths):
        lengths += 1  # and no row is written

    offered["commit"] |= {"lazy": lazy}
    _, document = run(tmp_path, op="commit")
    assert {line.split(": ")[1] for line in ops_bench.failures(document)} == {"lazy"}


def test_a_run_continues_where_the_last_one_of_the_same_sources_stopped(tmp_path, monkeypatch):
    _, stopped = run(tmp_path, seconds=-1, op=None)
    assert stopped["cases"] == []
    assert len(stopped["not_reached"]) == len(ops_cases.cases(toy=True))
    _, first = run(tmp_path)
    _, again = run(tmp_path)
    assert again["cases"] == first["cases"]
    monkeypatch.setattr(ops_bench.results, "sources", lambda: "others")
    assert run(tmp_path)[1]["cases"] != first["cases"]


def test_every_op_has_cases():
    assert set(ops_cases.AXES) == set(ops_cases.TOY_AXES)
    assert set(SCHEMAS) <= set(ops_cases.AXES)


def test_the_typical_case_of_every_op_comes_first():
    cases = ops_cases.cases()
    first = {case.op: dict(case.sizes) for case in reversed(cases)}
    typical = {"t": 1024, "N": 10, "Hq": 32, "Hkv": 32, "D": 128, "B": 1}
    assert first["branch_attention"] == typical
    assert [case.op for case in cases[: len(first)]] == list(dict.fromkeys(c.op for c in cases))
    assert len({case.name for case in cases}) == len(cases)
    others = 3 + 2 + 1 + 2 + 2  # one axis at a time
    assert sum(case.op == "branch_attention" for case in cases) == 1 + others


@pytest.mark.parametrize("difference", [0.1, float("nan")])
def test_outputs_that_differ_do_not_agree(difference):
    wanted = (torch.zeros(3), torch.arange(3))
    assert ops_cases.difference(wanted, wanted) is None
    assert ops_cases.difference((wanted[0] + difference, wanted[1]), wanted) > 0
    assert ops_cases.difference((wanted[0], wanted[1] + 1), wanted) > 0


def test_toy_sizes_enter_splits_merges_and_tickets():
    """The numbers are those of the kernels, for 108 multiprocessors and 2 bytes an element."""
    from args_fast.kernels.branch_attention import TUNING

    toy = [(case.op, dict(case.sizes)) for case in ops_cases.cases(toy=True)]
    tile, units = 2048, 1024  # csrc/cuda: logits of a block; 16-byte pieces of a block of commits
    block_n = TUNING[8, 0]["blocks"][2, 16][16][0]
    assert any(op == "topk_logprobs" and s["V"] > 2 * tile for op, s in toy)
    assert any(
        op == "select_commit" and 2 * s["L"] * s["Hkv"] * s["D"] * 2 // 16 > 2 * units
        for op, s in toy
    )
    assert any(op == "branch_attention" and s["t"] > 2 * block_n for op, s in toy)
