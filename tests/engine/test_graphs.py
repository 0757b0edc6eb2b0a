"""When a step is captured and when it is replayed, by a stand-in for the device."""

import gc
import math
import warnings

import pytest
import torch
from recorded import Recorded, record
from tiny_models import tokens
from traffic import assert_as_alone, run, scheduler, sequence

from args_fast.engine.graphs import StepGraphs
from args_fast.ops import plain, use_backend
from args_fast.ops.backends import TABLE, implementation


def test_the_first_call_runs_the_second_captures_and_all_others_replay():
    graphs, calls = Recorded(), []
    for i in range(4):
        graphs.run("a", lambda i=i: calls.append(i))
        assert len(graphs.captured) == (i > 0)
    assert calls == [0, 1, 1, 1]  # the captured one, whatever is handed in later
    graphs.run("b", lambda: calls.append("b"))
    assert calls[-1] == "b"
    assert len(graphs.captured) == 1
    graphs.clear()
    graphs.run("a", lambda: calls.append("again"))
    assert calls[-1] == "again"


def test_without_graphs_every_call_runs():
    graphs, calls = StepGraphs(enabled=False), []
    for i in range(3):
        graphs.run("a", lambda i=i: calls.append(i))
    assert calls == [0, 1, 2]


def test_a_step_that_cannot_be_captured_runs_as_it_is(monkeypatch):
    class Refusing:
        def __init__(self, *_, **__): ...

        def __enter__(self): ...

        def __exit__(self, *_):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("torch.cuda.CUDAGraph", Refusing)
    monkeypatch.setattr("torch.cuda.graph", Refusing)
    monkeypatch.setattr("torch.cuda.Stream", lambda: "capturing")
    monkeypatch.setattr("torch._C._cuda_clearCublasWorkspaces", lambda: None, raising=False)
    streams = ["the caller's"]
    monkeypatch.setattr("torch.cuda.current_stream", lambda: streams[-1])
    monkeypatch.setattr("torch.cuda.set_stream", streams.append)
    graphs, calls = StepGraphs(enabled=True), []
    graphs.run("a", lambda: calls.append("warm"))
    with pytest.warns(UserWarning, match="cannot be captured.*not permitted.*cuda_graphs=False"):
        graphs.run("a", lambda: calls.append("twice"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(3):
            graphs.run("a", lambda i=i: calls.append(i))
            graphs.run("b", lambda: None)
    assert calls[-3:] == [0, 1, 2]
    assert streams == ["the caller's"] * 2


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_before_a_capture_and_not_during_it(collecting, monkeypatch):
    log = []

    class Graph:
        def __init__(self, *_, **__): ...

        def __enter__(self):
            log.append("capture")

        def __exit__(self, *_): ...

        def pool(self): ...

        def replay(self): ...

    for name in ("CUDAGraph", "graph", "Stream"):
        monkeypatch.setattr(f"torch.cuda.{name}", Graph)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: None)
    monkeypatch.setattr("torch._C._cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr("gc.collect", lambda: log.append("collect"))
    graphs = StepGraphs(enabled=True)
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        for _ in range(3):
            graphs.run("a", lambda: log.append(gc.isenabled()))
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
    assert log == [collecting, "collect", "capture", False]


def test_weights_that_lie_elsewhere_end_the_graphs():
    graphs, calls = Recorded(), []
    weight, other = torch.zeros(2), torch.zeros(2)
    for weights in ([weight], [weight], [weight], [other], [other]):
        graphs.bind(weights)
        graphs.run("a", lambda: calls.append("ran"))
    assert len(graphs.captured) == 2  # at the second call with each


KINDS = ({"k": 9}, {"k": 9, "temperature": 0.7}, {"k": 4}, {"k": 1}, {"w": 0.0, "k": 3})


def recorded_scheduler(**options):
    return record(scheduler(padded=True, steps=4, **options))


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("lookahead", [0, math.inf])
@pytest.mark.parametrize("pages", [5, 40])
def test_what_was_captured_for_one_request_serves_the_next(pages, lookahead, in_flight):
    engine = recorded_scheduler(pages=pages, lookahead=lookahead, in_flight=in_flight)
    for wave in range(4):
        requests = [
            sequence(tokens(3 + 9 * i, seed=wave), max_new_tokens=20, seed=wave, **KINDS[i % 5])
            for i in range(5)
        ]
        run(engine, *requests)
        for one in requests:
            assert_as_alone(one)
    assert sum(runner.graphs.replays for runner in engine.bursts.runners.values()) > 100


@pytest.mark.parametrize("lookahead", [0, math.inf])
def test_memory_that_moves_takes_the_graphs_with_it(lookahead):
    engine = recorded_scheduler(pages=40, lookahead=lookahead, in_flight=1)
    for k in (2, 3, 9, 3, 2):  # a larger k than ever needs larger tails
        one = sequence(tokens(20), k=k, max_new_tokens=20)
        run(engine, one)
        assert_as_alone(one)


@pytest.mark.skipif(len(TABLE["cpu"]["commit"]) < 2, reason="the plain ops are all there is here")
def test_a_graph_belongs_to_the_backend_that_it_was_captured_with():
    engine = recorded_scheduler(pages=40)
    graphs = engine.bursts.runner("reward").graphs
    forced = "torch" if implementation("commit", "cpu") is not plain.commit else "cpp"
    for name, expected in ((None, 1), (forced, 2), (None, 2)):
        with use_backend(name):
            run(engine, sequence(tokens(20), k=3, max_new_tokens=10))
        assert len({key[1] for key in graphs._replays}) == expected
