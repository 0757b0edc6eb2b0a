"""The table of few-row products: a rehearsal on the CPU, and what follows from its figures."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import scripts
from args_fast.bench.ops_cases import LINEAR_ROWS, cases, linear_layers
from args_fast.models.linear import read_table

linear_table = scripts.load("scripts/linear_table.py")
PADDINGS, entries, merge = linear_table.PADDINGS, linear_table.entries, linear_table.merge


def run(folder, *more):
    command = ["-m", "args_fast.bench.ops_bench", "--op", "linear", "--device", "cpu", "--toy"]
    files = ["--results", str(folder)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *command, *files, *more]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(
    version("triton").startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 reads loop bounds in a way that numpy 2.4 refuses",
)
def test_rehearsal_writes_a_table_that_the_engine_reads(tmp_path):
    run(tmp_path, "--seconds", "0")
    (file,) = tmp_path.glob("*/ops-linear-toy-*.json")
    assert json.loads(file.read_text())["cases"] == []
    run(tmp_path)
    document = json.loads(file.read_text())
    assert len(document["cases"]) == 4
    for case in document["cases"]:
        rows = {row["name"]: row for row in case["rows"]}
        assert rows["torch"]["eager"]["median"] > 0
        assert rows["triton"]["eager"]["median"] > 0  # so the products agreed
    assert "A rehearsal" in file.with_suffix(".md").read_text()
    linear_table.main([str(file), "--table", str(tmp_path / "table.json")])
    table = read_table(tmp_path / "table.json")
    assert {entry.use for entry in table} == {"torch"}  # an interpreter wins nothing
    assert {entry.device for entry in table} == {document["environment"]["device"]}


def case(M, torch, triton, bias=0, N=8, K=16):
    rows = [
        {"name": name, "graph": time and {"median": time}, "eager": {"median": 1.0}}
        for name, time in (("torch", torch), ("triton", triton))
    ]
    return {"sizes": {"M": M, "N": N, "K": K, "bias": bias}, "rows": rows}


def report(*cases, on="cuda"):
    return {"environment": {"device": "D"}, "on": on, "cases": list(cases)}


def uses(*cases, on="cuda"):
    return {(e.first, e.last): e.use for e in entries(report(*cases, on=on), "file")}


def test_the_kernel_enters_the_table_where_it_wins_everywhere_it_was_measured():
    assert uses(case(1, 2.0, 1.0)) == {(1, 1): "triton"}
    assert uses(case(1, 1.0, 0.99)) == {(1, 1): "torch"}
    assert uses(case(10, 2.0, 1.0)) == {}  # 16 rows are missing
    assert uses(case(10, 2.0, 1.0), case(16, 2.0, 1.0)) == {(2, 16): "triton"}
    assert uses(case(10, 2.0, 1.0), case(16, 1.0, 2.0)) == {(2, 16): "torch"}
    assert uses(case(40, 2.0, 1.0), case(40, 1.0, 2.0, bias=1)) == {(33, 64): "torch"}
    assert uses(case(1, 2.0, None)) == {}  # the kernel was wrong, and not timed


def test_a_new_measurement_replaces_the_old_one_of_its_device():
    old = entries(report(case(1, 2.0, 1.0), case(1, 2.0, 1.0, K=32)), "old")
    new = entries(report(case(1, 1.0, 2.0)), "new")
    merged = {entry.K: (entry.use, entry.measured) for entry in merge(old, new)}
    assert merged == {16: ("torch", "new"), 32: ("triton", "old")}
    elsewhere = report(case(1, 1.0, 2.0))
    elsewhere["environment"]["device"] = "E"
    elsewhere = entries(elsewhere, "new")
    assert len(merge(old, elsewhere)) == 3


def test_layers_are_those_of_the_models_and_the_merged_ones():
    layers = linear_layers()
    assert len(set(layers)) == len(layers) == 37
    single = {(2560, 10240, 1), (512, 1024, 0), (50272, 768, 0), (1024, 2048, 0), (11008, 4096, 0)}
    merged = {(3 * 2560, 2560, 1), (2048 + 2 * 1024, 1024, 0), (2 * 14336, 4096, 0)}
    assert single | merged <= set(layers)
    assert max(map(layers.index, single)) < min(map(layers.index, merged))
    assert {rows for wanted in PADDINGS.values() for rows in wanted} == set(LINEAR_ROWS)


def test_a_layer_is_measured_at_all_rows_before_the_next_and_the_papers_pair_comes_first():
    measured = [dict(case.sizes) for case in cases(op="linear")]
    assert [sizes["M"] for sizes in measured[:8]] == [*LINEAR_ROWS, *LINEAR_ROWS]
    assert len(measured) == len(LINEAR_ROWS) * len(linear_layers())
    (of_pair,) = {sizes["K"] for sizes in measured[: 2 * len(LINEAR_ROWS)]}
    assert of_pair == 2560


def test_calls_from_python_on_cuda_decide_nothing():
    eager = case(1, None, None)
    eager["rows"][0]["eager"], eager["rows"][1]["eager"] = {"median": 2.0}, {"median": 1.0}
    assert uses(eager) == {}
    assert uses(eager, on="cpu") == {(1, 1): "triton"}
