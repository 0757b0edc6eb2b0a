"""Bytes of a step against figures counted by hand."""

import pytest
import torch

from args_fast.bench import models
from args_fast.bench.traffic import cached_bytes, step_bytes, weight_bytes


def shapes(lm, rm=None, dtype=torch.float32):
    found = [models.language_model(lm, "meta", dtype)]
    return found if rm is None else [*found, models.reward_model(rm, "meta", dtype)]


def test_step_of_opt_125m_by_hand():
    V, H, L, F = 50272, 768, 12, 3072
    layer = 4 * (H * H + H) + (H * F + F) + (F * H + H) + 2 * 2 * H  # attention, MLP, two norms
    t, B = 100, 3
    cached = B * t * 2 * L * H
    lm = L * layer + 2 * H + V * H + cached  # the tied head is read whole
    rm = L * layer + 2 * H + H + cached  # the score, and no table
    assert step_bytes(*shapes("opt-125m"), prefix=t, batch=B) == 4 * lm
    assert step_bytes(*shapes("opt-125m", "opt-125m"), prefix=t, batch=B) == 4 * (lm + rm)


def test_an_untied_head_is_read_whole_and_its_table_is_not():
    (lm,) = shapes("llama-7b", dtype=torch.bfloat16)
    parameters = sum(weight.numel() for weight in lm.parameters())
    assert weight_bytes(lm) == 2 * (parameters - 32000 * 4096)


@pytest.mark.parametrize(
    ("name", "values"), [("llama-3-8b", 2 * 32 * 8 * 128), ("qwen3-0.6b", 2 * 28 * 8 * 128)]
)
def test_grouped_heads_share_keys_and_values(name, values):
    assert cached_bytes(shapes(name, dtype=torch.bfloat16)[0]) == 2 * values


@pytest.mark.parametrize(
    ("lm", "rm", "floor"),
    [
        ("opt-2.7b", "opt-125m", 1.032),
        ("opt-2.7b", "opt-350m", 1.115),
        ("llama-7b", "llama-7b", 1.980),
    ],
)
def test_floor_of_the_slowdown_is_the_ratio_of_bytes(lm, rm, floor):
    greedy, both = shapes(lm, dtype=torch.bfloat16), shapes(lm, rm, torch.bfloat16)
    found = step_bytes(*both, prefix=1) / step_bytes(*greedy, prefix=1)
    assert found == pytest.approx(floor, abs=0.001)


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-llama", "tiny-qwen3"])
def test_cached_bytes_are_those_that_the_engine_keeps(name):
    pair = models.random_pair(name, name)
    pages = pair.cache.pages + 1  # one belongs to no prompt
    both = sum(cached_bytes(model) for model in (pair.language_model, pair.reward_model))
    assert pair.cache.bytes == pages * pair.cache.page_size * both
