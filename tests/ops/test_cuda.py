"""When the CUDA ops are offered, and what is said where they are not."""

import pytest
import torch

from args_fast.errors import BackendError
from args_fast.ops import backends, cuda


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One that has everything: each test takes something away."""
    library = tmp_path / "_cuda.so"
    library.write_bytes(b"not a library")
    monkeypatch.setattr(cuda, "LIBRARY", library)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda, "_refused", "")
    table = {
        op: {name: run for name, run in found.items() if name != "cuda"}
        for op, found in backends.TABLE["cuda"].items()
    }
    monkeypatch.setitem(backends.TABLE, "cuda", table)
    schemas = torch.library.Library("args_fast_cuda_of_a_test", "DEF")
    monkeypatch.setattr(cuda, "_library", schemas)
    yield monkeypatch
    schemas._destroy()


def test_a_machine_with_everything_has_them(machine):
    assert cuda.status() == "built"


@pytest.mark.parametrize(
    ("owner", "name", "value", "word"),
    [
        (torch.version, "cuda", None, "CUDA build of torch"),
        (cuda, "LIBRARY", cuda.LIBRARY.with_name("nothing.so"), "CUDA_HOME"),
        (torch.cuda, "is_available", lambda: False, "no device"),
        (torch.cuda, "get_device_capability", lambda: (7, 5), "8.0"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_offered(machine, owner, name, value, word):
    machine.setattr(owner, name, value)
    machine.setattr(torch.ops, "load_library", lambda path: pytest.fail("loaded"))
    before = {op: list(found) for op, found in backends.TABLE["cuda"].items()}
    cuda.load()
    assert word in cuda.status()
    assert {op: list(found) for op, found in backends.TABLE["cuda"].items()} == before


def test_a_library_that_does_not_load_is_a_warning(machine):
    with pytest.warns(UserWarning, match="reinstall"):
        cuda.load()
    assert "cannot be loaded" in cuda.status()
    assert "cuda" not in backends.TABLE["cuda"]["topk_logprobs"]


def test_they_are_offered_first(machine):
    loaded = []
    machine.setattr(torch.ops, "load_library", loaded.append)
    schemas = torch.ops.args_fast_cuda_of_a_test
    machine.setattr(torch.ops, "args_fast_cuda", schemas, raising=False)
    cuda.load()
    assert loaded == [cuda.LIBRARY]
    for op in cuda.OPS:
        assert next(iter(backends.TABLE["cuda"][op])) == "cuda"
    logits = torch.zeros(1, 9)
    first = backends.implementation("topk_logprobs", "cuda", (logits, 3))
    assert first is schemas.topk_logprobs.default


def test_float64_is_left_to_another_backend(machine):
    machine.setattr(torch.ops, "load_library", lambda path: None)
    schemas = torch.ops.args_fast_cuda_of_a_test
    machine.setattr(torch.ops, "args_fast_cuda", schemas, raising=False)
    cuda.load()
    arguments = (torch.zeros(1, 9, dtype=torch.float64), 3)
    chosen = backends.implementation("topk_logprobs", "cuda", arguments)
    assert chosen is not schemas.topk_logprobs.default
    assert torch.equal(chosen(*arguments)[1], torch.arange(3)[None])
    with backends.use_backend("cuda"), pytest.raises(BackendError, match="float64"):
        backends.implementation("topk_logprobs", "cuda", arguments)
