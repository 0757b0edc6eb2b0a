"""What the trace of a step says, from events that are made up and from a rehearsal."""

import json

import pytest

import scripts

graph_trace = scripts.load("scripts/graph_trace.py")


def kernel(name, start, duration, stream=7, **more):
    event = {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": duration}
    return event | {"args": {"stream": stream}} | more


def test_counts_medians_gaps_and_overlap():
    events = [
        kernel("gemm", 0, 4),
        kernel("norm", 5, 1),
        kernel("gemm", 10, 6),
        kernel("reward", 2, 6, stream=9),
        kernel("launch", 0, 99, cat="cuda_runtime"),
        {"ph": "i", "cat": "kernel", "name": "instant", "ts": 1},
    ]
    found = graph_trace.summarise(events)
    assert [(k["name"], k["calls"], k["median"]) for k in found["kernels"]] == [
        ("gemm", 2, 5),
        ("reward", 1, 6),
        ("norm", 1, 1),
    ]
    assert (found["launches"], found["streams"]) == (4, 2)
    assert found["gap_median"] == pytest.approx(2.5)  # 1 and 4
    # of 16: none at 8 to 10; both at 2 to 4 and 5 to 6
    assert found["idle"] == pytest.approx(2 / 16)
    assert found["overlapping"] == pytest.approx(3 / 16)
    assert found["one"] == pytest.approx(11 / 16)


def test_a_trace_without_kernels_is_not_a_success():
    assert graph_trace.summarise([])["launches"] == 0


def test_a_rehearsal_writes_its_results_apart(tmp_path, capsys):
    assert graph_trace.main(["--rehearse", "--steps", "2", "--results", str(tmp_path)]) == 0
    (file,) = tmp_path.rglob("graph-trace-rehearsed-*.json")
    (found,) = json.loads(file.read_text())["traces"].values()
    assert found["launches"] > 0
    assert "launches per step" in capsys.readouterr().out


def test_a_step_that_was_not_captured_is_not_traced(tmp_path, monkeypatch):
    build = graph_trace.build

    def uncaptured(case, device):
        pair = build(case, device)
        pair.engine.bursts.runner("reward").graphs.failure = "RuntimeError: not permitted"
        return pair

    monkeypatch.setattr(graph_trace, "build", uncaptured)
    with pytest.raises(RuntimeError, match=r"not captured as a graph: .*not permitted"):
        graph_trace.main(["--rehearse", "--steps", "2", "--results", str(tmp_path)])
    assert not list(tmp_path.rglob("*.json"))
