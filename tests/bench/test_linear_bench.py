"""The benchmark of few-row products: a rehearsal on the CPU, and what follows from its figures."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

from args_fast.bench.linear_bench import MODELS, PADDINGS, ROWS, entries, main, merge, shapes
from args_fast.models.linear import read_table


def run(folder, *more):
    command = "--device cpu --toy --dtype float32 --rows 1 --ways torch triton --write-table"
    files = ["--results", str(folder), "--table", str(folder / "table.json")]
    arguments = [sys.executable, "-m", "args_fast.bench.linear_bench", *command.split(), *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*arguments, *more], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    version("triton").startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 reads loop bounds in a way that numpy 2.4 refuses",
)
def test_it_stops_when_time_is_up_and_goes_on_when_asked_again(tmp_path):
    assert "time is up before case 1 of 4" in run(tmp_path, "--seconds", "0")
    run(tmp_path)
    (file,) = tmp_path.glob("*/linear-toy-*.json")
    report = json.loads(file.read_text())
    assert len(report["cases"]) == 4
    for case in report["cases"]:
        for way in ("torch", "triton"):
            assert case["ways"][way]["median"] > 0  # so the products agreed
            assert case["ways"][way]["fraction"] > 0
    assert "A rehearsal" in file.with_suffix(".md").read_text()
    table = read_table(tmp_path / "table.json")
    assert {entry.use for entry in table} == {"torch"}  # an interpreter wins nothing
    assert len(table) == 4
    assert {entry.device for entry in table} == {report["environment"]["device"]}
    before = file.read_bytes()
    assert "1/4" not in run(tmp_path)  # all is measured
    assert file.read_bytes() == before


def case(rows, torch, triton, bias=False, N=8, K=16):
    ways = {"torch": {"median": torch}, "triton": {"median": triton}}
    return {"N": N, "K": K, "bias": bias, "rows": rows, "models": {"m": 1}, "ways": ways}


def report(*cases):
    return {"environment": {"device": "D"}, "dtype": "bfloat16", "cases": list(cases)}


def uses(*cases):
    return {(e.first, e.last): e.use for e in entries(report(*cases), "file")}


def test_the_kernel_enters_the_table_where_it_wins_everywhere_it_was_measured():
    assert uses(case(1, 2.0, 1.0)) == {(1, 1): "triton"}
    assert uses(case(1, 1.0, 0.99)) == {(1, 1): "torch"}
    assert uses(case(10, 2.0, 1.0)) == {}  # 16 rows are missing
    assert uses(case(10, 2.0, 1.0), case(16, 2.0, 1.0)) == {(2, 16): "triton"}
    assert uses(case(10, 2.0, 1.0), case(16, 1.0, 2.0)) == {(2, 16): "torch"}
    assert uses(case(40, 2.0, 1.0), case(40, 1.0, 2.0, bias=True)) == {(33, 64): "torch"}
    failed = case(1, 2.0, 1.0)
    failed["ways"]["triton"] = {"error": "ArithmeticError: off by 3"}
    assert uses(failed) == {}


def test_a_new_measurement_replaces_the_old_one_of_its_device():
    old = entries(report(case(1, 2.0, 1.0), case(1, 2.0, 1.0, K=32)), "old")
    new = entries(report(case(1, 1.0, 2.0)), "new")
    merged = {entry.K: (entry.use, entry.measured) for entry in merge(old, new)}
    assert merged == {16: ("torch", "new"), 32: ("triton", "old")}
    elsewhere = entries({**report(case(1, 1.0, 2.0)), "environment": {"device": "E"}}, "new")
    assert len(merge(old, elsewhere)) == 3


def test_the_shapes_are_those_of_the_models():
    found = shapes(MODELS)
    weights = {
        model: sum(shape.N * shape.K * of.get(model, 0) for shape, of in found.items())
        for model in MODELS
    }
    # Parameters in billions, less the embeddings that are looked up and not multiplied with.
    assert weights["llama-7b"] == pytest.approx(6.61e9, rel=0.01)
    assert weights["llama-3-8b"] == pytest.approx(7.50e9, rel=0.01)
    assert weights["opt-2.7b"] == pytest.approx(2.65e9, rel=0.01)
    assert weights["opt-350m"] == pytest.approx(0.33e9, rel=0.01)
    assert {rows for wanted in PADDINGS.values() for rows in wanted} == set(ROWS)


def test_there_is_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--write-table" in capsys.readouterr().out
