"""Bytes, flops and floors against figures counted by hand."""

import pytest
import torch

from args_fast.bench import models, roofline
from args_fast.bench.roofline import DEVICES, Device, floor, model_cost

H100 = DEVICES["h100"]


@pytest.mark.parametrize(
    ("lm", "rm", "of_sizes", "of_reads"),
    [
        ("opt-2.7b", "opt-125m", 1.05, 1.032),
        ("opt-2.7b", "opt-350m", 1.13, 1.115),
        ("llama-7b", "llama-7b", 2.0, 1.980),
    ],
)
def test_the_slowdown_floor_is_about_the_ratio_of_the_sizes(lm, rm, of_sizes, of_reads):
    sizes = model_cost(rm, False).parameters / model_cost(lm, True).parameters
    assert 1 + sizes == pytest.approx(of_sizes, abs=0.02)
    # A step reads less than that: of the reward model's table of embeddings only k rows.
    f = floor(lm, rm, k=10, t=1, batch=1, dtype="bfloat16", device=H100)
    assert f.slowdown == pytest.approx(of_reads, abs=0.001)


def test_the_floor_of_the_headline_pair_grows_with_the_prefix():
    at = {"k": 10, "batch": 1, "dtype": "bfloat16", "device": H100}
    assert floor("opt-2.7b", "opt-350m", t=1900, **at).slowdown == pytest.approx(1.13, abs=0.005)
    assert floor("opt-2.7b", "opt-350m", t=128, **at).slowdown == pytest.approx(1.12, abs=0.005)


def test_a_step_of_opt_125m_by_hand():
    V, H, L, F = 50272, 768, 12, 3072
    layer = 4 * (H * H + H) + (H * F + F) + (F * H + H) + 2 * 2 * H  # attention, MLP, two norms
    t, B, k = 100, 3, 10
    f = floor("opt-125m", "opt-125m", k=k, t=t, batch=B, dtype="float32", device=H100)
    cached = 2 * L * H  # values of one token
    lm = L * layer + 2 * H + V * H + B * 2 * H + B * (t + 1) * cached  # the tied head is read whole
    rm = L * layer + 2 * H + H + B * k * 2 * H + B * (t + 1) * cached  # only rows of the tables
    assert f.lm.bytes == 4 * lm
    assert f.rm.bytes == 4 * rm
    matrices = L * (4 * H * H + 2 * H * F)
    attention = 4 * L * H * t
    assert f.lm.flops == B * (2 * (matrices + V * H) + attention)
    assert f.rm.flops == B * k * (2 * (matrices + H) + attention)


def test_an_untied_head_is_read_whole_and_its_table_by_rows():
    V, H = 32000, 4096
    cost = model_cost("llama-7b", True)
    assert cost.parameters - cost.whole == V * H  # the table
    assert cost.row == H
    assert model_cost("llama-7b", False).parameters - model_cost("llama-7b", False).whole == V * H


def test_grouped_heads_share_keys_and_values():
    assert model_cost("llama-3-8b", True).cached == 2 * 32 * 8 * 128
    assert model_cost("llama-3-8b", True).attention == 4 * 32 * 32 * 128
    assert model_cost("qwen3-0.6b", True).cached == 2 * 28 * 8 * 128


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-llama", "tiny-qwen3"])
def test_the_cache_is_as_large_as_the_one_the_engine_keeps(name):
    pair = models.random_pair(name, name)
    engine = pair._rm.layout.bytes_per_token
    assert roofline.cache_bytes(name, tokens=7, dtype="float32") == 7 * engine


def test_at_a_large_batch_the_floor_is_arithmetic():
    f = floor("opt-2.7b", "opt-350m", k=10, t=0, batch=100_000, dtype="bfloat16", device=H100)
    flops = 2 * model_cost("opt-350m", False).matrices, 2 * model_cost("opt-2.7b", True).matrices
    assert f.slowdown == pytest.approx(1 + 10 * flops[0] / flops[1], rel=1e-6)


def test_one_candidate_needs_no_reward_model():
    f = floor("opt-2.7b", "opt-350m", k=1, t=128, batch=1, dtype="bfloat16", device=H100)
    assert f.slowdown == 1


def test_a_floor_is_the_slower_of_moving_and_computing():
    work = roofline.Work(bytes=100, flops=60)
    assert work.seconds(Device("", 10, {"float32": 10}, ""), "float32") == 10
    assert work.seconds(Device("", 100, {"float32": 10}, ""), "float32") == 6


def test_this_device_is_measured():
    here = roofline.this_device(torch.device("cpu"), "float32")
    assert here.bandwidth > 1e8
    assert here.peak["float32"] > 1e8
    assert here.source.startswith("measured")


def test_the_command_prints_every_device_and_its_source(capsys):
    arguments = {"lm": "opt-2.7b", "rm": "opt-350m", "k": 10, "prompt": 1900, "batch": 1}
    roofline.main([f"--{name}={value}" for name, value in arguments.items()])
    shown = capsys.readouterr().out
    for device in DEVICES.values():
        (line,) = (line for line in shown.splitlines() if device.name in line)
        assert "1.134" in line
        assert "datasheet" in line
