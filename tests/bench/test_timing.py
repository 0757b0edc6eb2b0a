"""How a call is timed on CUDA, by stand-ins for the device, and what makes two runs the same."""

import pytest
import torch

from args_fast.bench import ops_bench, results, timing
from args_fast.bench.ops_cases import Prepared

CPU = torch.device("cpu")


class Event:
    def __init__(self, log):
        self.log = log

    def record(self):
        self.log.append("record")

    def synchronize(self): ...

    def elapsed_time(self, end):
        return 2.0


class Flushed:
    def __init__(self, log):
        self.log = log

    def zero_(self):
        self.log.append("write")

    def sum(self):
        self.log.append("read")


@pytest.mark.parametrize("drained", [True, False])
def test_a_cache_is_emptied_by_reading_what_was_written(drained, monkeypatch):
    log = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Flushed(log))
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event(log))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: log.append("drain"))
    once = timing._by_events(lambda: log.append("call"), CPU, drained)
    assert [once(), once()] == [2e-3] * 2
    waits = ["drain"] if drained else []
    assert log == 2 * ["write", "read", *waits, "record", "call", "record"]


@pytest.mark.parametrize(("changed", "calls"), [((), 20), ((torch.zeros(1),), 4)])
def test_a_graph_has_many_calls_and_one_of_them_is_what_is_reported(changed, calls, monkeypatch):
    log = []

    class Nothing:
        def __init__(self, *_, **__): ...

        def __enter__(self): ...

        def __exit__(self, *_): ...

        def wait_stream(self, _): ...

        def replay(self): ...

    class Graph(Nothing):
        def __enter__(self):
            log.clear()  # what came before was the warm-up

    for name in ("Stream", "stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(ops_bench, "measure", lambda *_, per, **__: timing.summary([1.0 / per]))
    prepared = Prepared(1, lambda: None, changed)
    sample, note = ops_bench._graph(prepared, lambda: log.append("call"), CPU)
    assert note is None
    assert len(log) == calls
    assert sample["median"] == 1.0 / calls


def test_a_copy_counts_what_it_reads_and_what_it_writes(monkeypatch):
    monkeypatch.setitem(timing.READ, "cpu", 2**20)
    monkeypatch.setattr(timing, "measure", lambda call, *_, **__: call() and timing.summary([2.0]))
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *_: True)
    assert timing.copy_bandwidth(CPU) == 2**20


SWITCHES = [
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_WAIT_POLICY",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TRITON_INTERPRET",
    "ARGS_FAST_LINEAR",
    "ARGS_FAST_BACKEND",
]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_part_of_a_results_identity(name, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "sources", lambda: "same")
    monkeypatch.delenv(name, raising=False)
    file, document = results.begin(tmp_path, "ops", CPU, cases=[])
    results.write(file, document | {"cases": [1]}, "words")
    assert results.begin(tmp_path, "ops", CPU, cases=[])[1]["cases"] == [1]
    monkeypatch.setenv(name, "something else")
    assert results.begin(tmp_path, "ops", CPU, cases=[])[1]["cases"] == []
