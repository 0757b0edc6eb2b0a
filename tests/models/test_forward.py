"""r is what the reward model's own forward returns: the engine gives the same, or refuses."""

import copy
import math
from types import SimpleNamespace

import oracle
import pytest
import torch
import transformers as t
from refusals import refuses
from tiny_models import (
    REWARD_CONFIGS,
    VOCABULARY,
    language_model,
    reward_model,
    tokens,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from args_fast import ArgsDecoder, DecodingConfig, reference
from args_fast.errors import NonFiniteError, RewardHeadError
from args_fast.models.backbone import Backbone
from args_fast.models.forward import own_reward
from args_fast.models.proof import prove_reward

CONFIG = DecodingConfig(k=5, max_new_tokens=4, eos_token_ids=[])


def after_head(name, function, base=t.LlamaForSequenceClassification):
    """A reward model whose forward does something to its logits."""

    class Changed(base):
        def forward(self, *inputs, **options):
            out = super().forward(*inputs, **options)
            out.logits = function(out.logits)
            return out

    model = copy.deepcopy(reward_model(name))
    model.__class__ = Changed
    return model


QUIRKS = {
    "sigmoid": (torch.sigmoid, ["a sigmoid after its head"]),
    "tanh": (torch.tanh, ["a tanh after its head"]),
    "normalised": (lambda r: (r - 0.3) / 0.7, ["r * 1.429 + -0.4286", "a mean or a bias"]),
    "bias": (lambda r: r + 2.5, ["r * 1 + 2.5"]),
    "cap": (lambda r: 0.2 * torch.tanh(r / 0.2), ["something after its head"]),
    "rounded": (lambda r: r.round(), ["something after its head"]),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_reward_that_is_more_than_its_head_is_refused(quirk):
    function, said = QUIRKS[quirk]
    with refuses(RewardHeadError, "Changed", "the engine gives", "the model", *said):
        ArgsDecoder(language_model(), after_head("llama", function))


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_references_give_what_the_forward_gives(quirk, name):
    function, _ = QUIRKS[quirk]
    base = type(reward_model(name))
    lm, rm = language_model(), after_head(name, function, base)
    result = reference.decode(lm, rm, tokens(9), CONFIG)
    wanted = oracle.decode(lm, rm, tokens(9), k=5, w=1.5, steps=4)
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-5)
    text = tokens(9)
    for token, reward in zip(result.token_ids, result.rewards, strict=True):
        text.append(token)
        plain = reward_model(name)(torch.tensor([text])).logits.item()
        assert reward == pytest.approx(function(torch.tensor(plain)).item(), abs=1e-4)


def test_the_difference_is_looked_for_beyond_thresholds_too():
    rm = after_head("llama", lambda logits: logits)
    original = rm.forward

    def rises(input_ids, **options):
        out = original(input_ids, **options)
        out.logits = out.logits + (input_ids.shape[1] > 60)
        return out

    rm.forward = rises
    backbone = Backbone(rm, "reward model")
    assert backbone.thresholds == ()
    prove_reward(backbone, engine_rewards(rm))
    rm.config.bonus_floor = 60
    with refuses(RewardHeadError, "63 tokens"):
        prove_reward(Backbone(rm, "reward model"), engine_rewards(rm))


def engine_rewards(rm):
    def rewards(texts):
        states = [rm.base_model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in texts]
        return [rm.score(state).item() for state in states]

    return rewards


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", REWARD_CONFIGS)
def test_every_architecture_passes(name, dtype):
    rm = copy.deepcopy(reward_model(name)).to(dtype)
    prove_reward(Backbone(rm, "reward model"), engine_rewards(rm))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sigmoid_is_noticed_in_16_bits(dtype):
    rm = after_head("llama", torch.sigmoid).to(dtype)
    with refuses(RewardHeadError, "a sigmoid"):
        prove_reward(Backbone(rm, "reward model"), engine_rewards(rm))


def test_rewards_that_are_not_numbers():
    rm = after_head("llama", lambda r: r * math.nan)
    with refuses(NonFiniteError, "reward model", "NaN or infinite"):
        prove_reward(Backbone(rm, "reward model"), engine_rewards(rm))
    rm = copy.deepcopy(reward_model())
    torch.nn.init.constant_(rm.score.weight, math.nan)
    with refuses(NonFiniteError, "score.weight", "get the checkpoint again"):
        prove_reward(Backbone(rm, "reward model"), engine_rewards(rm))


# ---- the call of a model -------------------------------------------------------------------------


def test_no_token_is_taken_for_padding():
    rm = copy.deepcopy(reward_model())
    text = tokens(7)
    hidden = rm.model(torch.tensor([text])).last_hidden_state
    for pad in {*text, 0, None}:
        rm.config.pad_token_id = pad
        assert own_reward(rm, text).item() == pytest.approx(
            rm.score(hidden[0, -1]).item(), abs=1e-5
        )
        assert rm.config.pad_token_id == pad


def test_the_padding_token_comes_back_after_an_error():
    rm = copy.deepcopy(reward_model())
    with refuses(RewardHeadError, "does not run on a text of 1 tokens", "IndexError"):
        own_reward(rm, [VOCABULARY + 5])
    assert rm.config.pad_token_id == 0


@pytest.mark.parametrize("field", ["logits", "rewards", "score"])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 4), (1, 4, 1)], ids=str)
def test_where_the_reward_is(field, shape):
    values = torch.zeros(shape)
    values.view(-1)[-1] = 0.5
    rm = returns(SimpleNamespace(**{field: values}))
    assert own_reward(rm, tokens(4)).item() == 0.5


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (SequenceClassifierOutput(logits=torch.zeros(1, 2)), "(1, 2) values"),
        (SequenceClassifierOutput(logits=torch.zeros(1, 4, 3)), "(1, 4, 3) values"),
        (SimpleNamespace(hidden=1), "logits, rewards, score"),
    ],
)
def test_an_output_that_is_not_one_number(output, said):
    with refuses(RewardHeadError, "reward model", said):
        own_reward(returns(output), tokens(4))


def returns(output):
    rm = copy.deepcopy(reward_model())
    rm.forward = lambda input_ids: output
    return rm


def test_several_outputs_may_be_folded():
    rm = returns(SequenceClassifierOutput(logits=torch.tensor([[1.0, 5.0, 2.0]])))
    assert own_reward(rm, tokens(4), {1: 1.0, 0: -0.5}).item() == 4.5


# ---- the reference with a function ---------------------------------------------------------------


def test_a_function_of_the_texts_is_a_reward_too():
    rm, asked = reward_model(), []

    def score(texts):
        asked.extend(texts)
        return [oracle.reward(rm, text) for text in texts]

    by_function = reference.decode(language_model(), score, tokens(9), CONFIG)
    by_model = reference.decode(language_model(), rm, tokens(9), CONFIG)
    assert by_function.token_ids == by_model.token_ids
    assert by_function.rewards == pytest.approx(by_model.rewards, abs=1e-5)
    assert len(asked) == 4 * 5
    assert asked[0][:9] == tokens(9)
    assert len(asked[0]) == 10


def test_a_function_that_forgets_a_text():
    with refuses(RewardHeadError, "4 rewards for 5 texts"):
        reference.decode(language_model(), lambda texts: [0.0] * 4, tokens(9), CONFIG)
