"""The shares of a step are of the right kind, and add up to the step."""

import json
from types import SimpleNamespace

import pytest

from args_fast.bench import profile_step
from args_fast.bench.profile_step import HOST, OTHER, PRODUCTS
from args_fast.ops import cpp


def op(key, cpu=0.0, cuda=0.0):
    return SimpleNamespace(
        key=key, self_cpu_time_total=cpu * 1e6, self_device_time_total=cuda * 1e6
    )


OPS = [
    op("cudaLaunchKernel", cpu=7.0),
    op("aten::linear", cpu=0.5),
    op("aten::addmm", cpu=2.0, cuda=1.5),
    op("args_fast::linear", cpu=5.0, cuda=0.75),
    op("args_fast::branch_attention", cpu=3.0, cuda=0.25),
    op("aten::layer_norm", cpu=0.25),
    op("aten::relu", cpu=0.25),
]


def test_shares_are_of_the_time_that_passed():
    assert profile_step.shares(OPS, 20.0, "cpu") == pytest.approx(
        {
            PRODUCTS: 7.5 / 20,
            "branch_attention": 3 / 20,
            "norms": 0.25 / 20,
            OTHER: 0.25 / 20,
            HOST: 9 / 20,
        }
    )


def test_kernels_count_on_cuda():
    found = profile_step.shares(OPS, 10.0, "cuda")
    assert (found[PRODUCTS], found["branch_attention"]) == pytest.approx((0.225, 0.025))
    assert found[HOST] == 0.75


def test_small_run_writes_the_shares_of_a_step(tmp_path, capsys):
    arguments = ["--lm=tiny-opt", "--rm=tiny-opt", "--prompt=9", "--steps=3", "--rounds=2"]
    profile_step.main([*arguments, "--device=cpu", f"--results={tmp_path}"])
    (file,) = tmp_path.glob("*/step-profile-*.json")
    (step,) = json.loads(file.read_text())["steps"].values()
    assert step["step"]["repeats"] == 6
    layers = "decoder_layers" if cpp.status() == "built" else "branch_attention"
    assert {PRODUCTS, layers, "topk_logprobs", HOST} <= set(step["shares"])
    for share in step["shares"].values():
        assert 0 <= share["median"] <= 1
    assert "| matrix products |" in capsys.readouterr().out
