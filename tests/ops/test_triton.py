"""When the Triton ops are offered, and what is chosen where they cannot take the arguments. What
they compute is tested in tests/kernels."""

import subprocess
import sys

import pytest
import torch

from args_fast import ops
from args_fast.errors import BackendError
from args_fast.ops import backends, plain, triton


def test_status_says_what_is_missing(monkeypatch):
    monkeypatch.delenv(triton.INTERPRETER, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert triton.status() == "built"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "no CUDA device" in triton.status()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "install a CUDA build of torch" in triton.status()
    monkeypatch.setenv(triton.INTERPRETER, "1")
    assert triton.status() == "built"
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert "pip install 'triton" in triton.status()


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="the ops are offered here")
def test_triton_is_not_imported_where_it_does_not_run():
    program = "import sys, args_fast.ops; print('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


@pytest.fixture
def small(monkeypatch):
    """A backend that runs topk_logprobs for k up to 3; the list of the k that it ran."""
    ran = []

    def topk_logprobs(logits, k):
        ran.append(k)
        return plain.topk_logprobs(logits, k)

    monkeypatch.setitem(backends.TABLE, "cpu", {**backends.TABLE["cpu"]})
    monkeypatch.setattr(backends, "LIMITS", {})
    monkeypatch.setattr(backends, "ORDER", {"cpu": ("small", *backends.ORDER["cpu"])})
    backends.offer(
        "small",
        "cpu",
        "topk_logprobs",
        topk_logprobs,
        unsupported=lambda logits, k: f"k is {k}" if k > 3 else None,
    )
    return ran


def test_the_best_backend_that_can_is_chosen(small, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    logits = torch.randn(2, 9)
    for k in (3, 4, 2, 9):
        assert torch.equal(ops.topk_logprobs(logits, k)[1], plain.topk_logprobs(logits, k)[1])
    assert small == [3, 2]


def test_a_forced_backend_that_cannot_says_why(small):
    with ops.use_backend("small"):
        ops.topk_logprobs(torch.randn(2, 9), 3)
        with pytest.raises(BackendError, match=r"'small' cannot run this topk_logprobs: k is 4\."):
            ops.topk_logprobs(torch.randn(2, 9), 4)


def test_a_fused_op_can_take_what_its_parts_can(monkeypatch):
    monkeypatch.setitem(backends.TABLE, "cpu", {**backends.TABLE["cpu"]})
    monkeypatch.setattr(backends, "LIMITS", {})
    for op, limit in {
        "select": lambda hidden, *rest: "hidden" if hidden == "bad" else None,
        "commit": lambda tail_k, tail_v, branch, *rest: "tail" if tail_k == "bad" else None,
    }.items():
        backends.offer("small", "cpu", op, getattr(plain, op), unsupported=limit)

    def runs(hidden, tail_k):
        arguments = (hidden, *[0] * 6, tail_k, *[0] * 5)
        with ops.use_backend("small"):
            return backends.implementation("select_commit", "cpu", arguments)

    assert runs("good", "good")
    for hidden, tail_k, reason in (("bad", "good", "hidden"), ("good", "bad", "tail")):
        with pytest.raises(BackendError, match=reason):
            runs(hidden, tail_k)
