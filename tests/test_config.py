"""DecodingConfig: what is accepted, and what is said where it is not."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from args_fast import ArgsError, DecodingConfig
from args_fast.config import MAX_K, configs_for
from args_fast.errors import ConfigError

INF, NAN = math.inf, math.nan

BAD = {
    "k": [0, -1, MAX_K + 1, 2.0, "10", None, True],
    "w": [1e31, 10**400, NAN, INF, -INF, "1.5", None, True, [1.5]],
    "temperature": [1e-31, 1e31, False, -0.5, NAN, INF, "0.7", True],
    "max_new_tokens": [0, -3, 1.5, None, 2**31, True],
    "seed": [-1, 2**63, 0.5, None, "0", True],
    "eos_token_ids": [
        2,
        "2",
        b"2",
        {2: 2},
        torch.tensor(2),
        [-1],
        [2.0],
        ["</s>"],
        [None],
        [True],
        [2**31],
    ],
    "stop": ["", [""], ["a", ""], [b"a"], [3], 5, b"a", {"a": 1}, torch.tensor(5)],
    "return_candidates": [1, None, "yes"],
}
ALLOWED = {
    "k": "1 to 128",
    "w": "a finite number",
    "temperature": "a finite number above 0, or None or 0 for the argmax",
    "max_new_tokens": "1 to 2147483647",
    "seed": "0 to 9223372036854775807",
    "eos_token_ids": "",
    "stop": "strings",
    "return_candidates": "True or False",
}
GOOD = {
    "k": [1, 128, np.int64(3)],
    "w": [0, 0.0, -2, 1e30, -1e30, 1e-9, np.float32(1.5), np.int64(2)],
    "temperature": [None, 1, 1e-30, 1e30, np.float64(0.5)],
    "max_new_tokens": [1, 10_000],
    "seed": [0, 2**63 - 1],
    "eos_token_ids": [None, (), [], [0], (2, 5), {7}, range(3), np.array([4, 5])],
    "stop": ["x", [], (), ["a", "bc"], ("\n\n",)],
}


def each(table):
    return [(field, value) for field, values in table.items() for value in values]


@pytest.mark.parametrize(("field", "value"), each(BAD), ids=lambda x: repr(x))
def test_a_bad_value_is_named_with_the_allowed_range(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        DecodingConfig(**{field: value})
    assert isinstance(caught.value, ArgsError)
    shown = value[-1] if field == "eos_token_ids" and isinstance(value, list) else value
    assert repr(shown) in str(caught.value) or field == "stop"
    assert ALLOWED[field] in str(caught.value)


@pytest.mark.parametrize(("field", "value"), each(GOOD), ids=lambda x: repr(x))
def test_a_good_value_is_kept(field, value):
    config = DecodingConfig(**{field: value})
    kept = getattr(config, field)
    if field == "eos_token_ids" and value is not None:
        assert kept == tuple(value)
    elif field == "stop":
        assert kept == ((value,) if isinstance(value, str) else tuple(value))
    else:
        assert kept == value


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float32(0)], ids=repr)
def test_temperature_zero_is_the_argmax(zero):
    assert DecodingConfig(temperature=zero) == DecodingConfig(temperature=None)


def test_stop_none_is_no_stop():
    assert DecodingConfig(stop=None) == DecodingConfig()


def test_numbers_of_numpy_become_plain_ones():
    config = DecodingConfig(
        k=np.int32(3), w=np.float32(0.5), seed=np.uint8(7), eos_token_ids=np.array([2, 5])
    )
    kept = dataclasses.asdict(config)
    assert json.loads(json.dumps(kept))["eos_token_ids"] == [2, 5]
    assert config == DecodingConfig(k=3, w=0.5, seed=7, eos_token_ids=[2, 5])


# ---- one config for many prompts ----------------------------------------------------------------


def test_configs_are_one_for_all_or_one_for_each():
    few, many = DecodingConfig(k=3), DecodingConfig(k=9)
    assert configs_for(None, 2) == [DecodingConfig()] * 2
    assert configs_for(few, 3) == [few] * 3
    assert configs_for((few, many), 2) == [few, many]


@pytest.mark.parametrize("config", [{"k": 3}, "k=3", 3, {3}], ids=repr)
def test_config_of_another_kind_is_refused_with_the_way(config):
    with pytest.raises(ConfigError, match=r"must be a DecodingConfig, such as") as error:
        configs_for(config, 1)
    assert repr(config) in str(error.value)
    assert "DecodingConfig(**options)" in str(error.value)


def test_config_list_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="a list of 3 for 2 prompts"):
        configs_for([DecodingConfig()] * 3, 2)


def test_the_defaults_are_the_papers():
    config = DecodingConfig()
    assert (config.k, config.w, config.temperature) == (10, 1.5, None)
    assert (config.max_new_tokens, config.seed) == (128, 0)
    assert (config.eos_token_ids, config.stop) == (None, ())


def test_it_is_a_value():
    one, other = DecodingConfig(eos_token_ids=[2]), DecodingConfig(eos_token_ids=(2,))
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.k = 3
    assert dataclasses.replace(one, k=3).k == 3
    with pytest.raises(ValueError, match="k is 0"):
        dataclasses.replace(one, k=0)


@pytest.mark.parametrize(
    ("k", "w", "consults"), [(1, 1.5, False), (10, 0, False), (10, 1.5, True), (2, -1e-9, True)]
)
def test_the_reward_model_is_consulted_only_where_it_can_matter(k, w, consults):
    assert DecodingConfig(k=k, w=w).consults_reward is consults


def test_noise_is_zero_for_the_argmax():
    noise = DecodingConfig(k=3, max_new_tokens=4, seed=5).noise()
    assert torch.equal(noise, torch.zeros(4, 3))


def test_noise_depends_on_the_seed_alone():
    config = DecodingConfig(k=3, max_new_tokens=4, temperature=0.7, seed=2**63 - 1)
    noise = config.noise()
    torch.rand(17)
    assert torch.equal(config.noise(), noise)
    assert torch.equal(dataclasses.replace(config, temperature=9.0, w=-1).noise(), noise)
    assert not torch.equal(dataclasses.replace(config, seed=1).noise(), noise)
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"


def test_noise_leaves_torchs_own_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    DecodingConfig(temperature=1.0).noise()
    assert torch.equal(torch.rand(2), expected)


def test_noise_is_standard_gumbel():
    noise = DecodingConfig(k=100, max_new_tokens=500, temperature=1.0).noise().flatten().double()
    # Its distribution function is exp(-exp(-x)): the largest distance from it is of the order of
    # 1 / sqrt(50,000), and the mean is Euler's constant.
    empirical = torch.arange(1, noise.numel() + 1) / noise.numel()
    exact = torch.exp(-torch.exp(-noise.sort().values))
    assert (empirical - exact).abs().max() < 1.95 / math.sqrt(noise.numel())
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.isfinite().all()
