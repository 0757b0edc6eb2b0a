"""The benchmark of few-row products: a rehearsal on the CPU, and what follows from its figures."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from torch import nn

from args_fast.bench import models
from args_fast.bench.linear_bench import PADDINGS, entries, main, merge
from args_fast.bench.ops_cases import LINEAR, LINEAR_LAYERS
from args_fast.models.linear import read_table


def run(folder, *more):
    command = ["-m", "args_fast.bench.linear_bench", "--device", "cpu", "--toy", "--write-table"]
    files = ["--results", str(folder), "--table", str(folder / "table.json")]
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
    assert len(document["cases"]) == 2
    for case in document["cases"]:
        rows = {row["name"]: row for row in case["rows"]}
        assert rows["torch"]["eager"]["median"] > 0
        assert rows["triton"]["eager"]["median"] > 0  # so the products agreed
    assert "A rehearsal" in file.with_suffix(".md").read_text()
    table = read_table(tmp_path / "table.json")
    assert {entry.use for entry in table} == {"torch"}  # an interpreter wins nothing
    assert {entry.device for entry in table} == {document["environment"]["device"]}


def case(M, torch, triton, bias=0, N=8, K=16):
    rows = [
        {"name": name, "graph": None, "eager": time and {"median": time}}
        for name, time in (("torch", torch), ("triton", triton))
    ]
    return {"sizes": {"M": M, "N": N, "K": K, "bias": bias}, "rows": rows}


def report(*cases):
    return {"environment": {"device": "D", "cuda": "13.0"}, "cases": list(cases)}


def uses(*cases):
    return {(e.first, e.last): e.use for e in entries(report(*cases), "file")}


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


def test_layers_are_those_of_the_models():
    found = set()
    for name in ("opt-350m", "opt-2.7b", "llama-7b", "llama-3-8b"):
        for module in models.language_model(name, "meta").modules():
            if isinstance(module, nn.Linear):
                bias = int(module.bias is not None)
                found.add((module.out_features, module.in_features, bias))
    assert set(LINEAR_LAYERS) == found
    assert {rows for wanted in PADDINGS.values() for rows in wanted} == set(LINEAR["M"])


def test_there_is_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--write-table" in capsys.readouterr().out
