"""The models are of the sizes they are named after, where and as they are wanted."""

import pytest
import torch

from args_fast.bench import models
from args_fast.errors import ConfigError

# Parameters of the published checkpoints, from their own listings.
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "llama-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}


def parameters(model):
    return sum(weight.numel() for weight in model.parameters())


def test_every_model_is_checked():
    assert set(PUBLISHED) == {name for name in models.CONFIGS if not name.startswith("tiny-")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_number_of_parameters(name):
    lm = models.language_model(name, "meta", torch.bfloat16)
    assert parameters(lm) == PUBLISHED[name]
    # The classifier: the head of the vocabulary, where it has weights of its own, is gone, and one
    # number comes out.
    config = lm.config
    head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    rm = models.reward_model(name, "meta", torch.bfloat16)
    score = sum(weight.numel() for weight in rm.score.parameters())
    assert parameters(rm) == PUBLISHED[name] - head + score
    assert rm.score.out_features == 1


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-llama", "tiny-qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_are_built_in_their_dtype(name, dtype):
    pair = models.random_pair(name, name, dtype=dtype)
    for model in (pair.language_model, pair.reward_model):
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        assert not model.training


def test_a_seed_gives_the_same_weights():
    first, again, other = (models.random_pair("tiny-opt", "tiny-opt", seed=s) for s in (1, 1, 2))
    state = [pair.reward_model.state_dict()["score.weight"] for pair in (first, again, other)]
    assert torch.equal(state[0], state[1])
    assert not torch.equal(state[0], state[2])


def test_tiny_stands_for_the_same_architecture():
    for name in models.CONFIGS:
        assert models.config(models.tiny(name)).model_type == models.config(name).model_type


def test_an_unknown_model_is_an_error_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"opt-9b.*opt-125m"):
        models.config("opt-9b")
