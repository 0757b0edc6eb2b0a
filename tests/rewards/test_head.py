"""A head on the language model: the oracle's tokens in one pass per token."""

import math

import oracle
import pytest
import torch
from passes import reads_per_token
from safetensors.torch import save_file
from tiny_models import CONFIGS, decoder, language_model, reward_model, tokens
from traffic import run, scheduler, sequence

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import RewardHeadError
from args_fast.rewards import Head

# Models that change the logits after their output layer, and one that projects its hidden states.
NAMES = ["llama", "qwen3", "gpt2", "opt", "gemma2", "cohere", "mistral"]
assert set(NAMES) <= set(CONFIGS)


def width(lm):
    with torch.no_grad():
        return lm.base_model(torch.tensor([[5]])).last_hidden_state.shape[2]


def heads(size):
    torch.manual_seed(0)
    return {
        "linear": torch.nn.Linear(size, 1),
        "mlp": torch.nn.Sequential(
            torch.nn.Linear(size, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        ),
    }


WAYS = [("linear", None), ("mlp", 0.7), ("linear", 0.7), ("mlp", None)]


@pytest.mark.parametrize(
    ("name", "kind", "temperature"),
    [(name, *way) for i, name in enumerate(NAMES) for way in (WAYS[:2] if i % 2 else WAYS[2:])],
)
def test_the_tokens_are_the_oracles(name, kind, temperature):
    lm = language_model(name)
    head = heads(width(lm))[kind]

    def naive(text):
        with torch.no_grad():
            return head(lm.base_model(torch.tensor([text])).last_hidden_state[0, -1]).item()

    pair = ArgsDecoder(lm, Head(head))
    options = {"k": 6, "w": 3.0, "temperature": temperature}
    config = DecodingConfig(max_new_tokens=10, eos_token_ids=[], **options)
    prompts = [tokens(9), tokens(20, seed=1), tokens(3, seed=2)]
    for prompt, result in zip(prompts, pair.generate(prompts, config), strict=True):
        expected = oracle.decode(lm, naive, prompt, steps=10, **options)
        assert expected.margin > 1e-5
        assert result.token_ids == expected.tokens
        assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
        along = pair.token_rewards(prompt, result.token_ids)
        assert along == pytest.approx(expected.rewards, abs=1e-4)


@pytest.mark.parametrize(("name", "plain"), [("llama", True), ("gemma2", False), ("opt", True)])
def test_a_token_costs_one_pass_and_the_winners_logits_alone(name, plain):
    lm = language_model(name)
    pair = ArgsDecoder(lm, Head(heads(width(lm))["linear"]))
    assert pair.engine.lm.has_plain_head == plain
    rows, products = [], []
    hooks = [
        lm.get_input_embeddings().register_forward_pre_hook(
            lambda m, x: rows.append(x[0].shape[1])
        ),
        lm.lm_head.register_forward_pre_hook(lambda m, x: products.append(x[0].shape[:-1].numel())),
    ]
    pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[]))
    for hook in hooks:
        hook.remove()
    assert rows == [8, 1] + [5] * 6  # the prompt, its last token, k candidates a step
    assert products[1:] == [1 if plain else 5] * 6


def test_each_weight_is_read_once_per_token():
    lm = language_model()
    pair = ArgsDecoder(lm, Head(heads(32)["linear"]), fused_layers=False)
    counts = reads_per_token(
        lm,
        lambda n: pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=n, eos_token_ids=[])),
    )
    assert len(counts) == 14 + 1
    assert set(counts.values()) == {(1, 1)}


def test_next_to_other_rewards_and_preempted():
    head = heads(32)["linear"]
    reward = Head(head)
    reward.attach(decoder().engine.lm, None)
    rewards = {"head": reward, "reward": decoder().engine.panel.rewards["reward"]}
    weights = [{"head": 1.0}, {"reward": 1.0}, {"head": 2.0, "reward": -1.0}, {"head": 1.0}]
    many = [
        sequence(tokens(14, seed=i), k=4, max_new_tokens=30, weights=weights[i]) for i in range(4)
    ]
    engine = scheduler(rewards=rewards, pages=6, rows=4)
    for one in many:
        engine.submit(one)
    while engine.busy:
        engine.step()
    assert engine.stats.preemptions > 0
    for one in many:
        again = sequence(one.prompt, k=4, max_new_tokens=30, weights=one.weights)
        run(scheduler(rewards=rewards, pages=40), again)
        assert one.ids == again.ids


def test_a_head_from_a_file_and_labels(tmp_path):
    torch.manual_seed(1)
    weight = torch.randn(3, 32)
    save_file({"weight": weight}, tmp_path / "head.safetensors")
    share = {0: 1.0, 2: -0.5}
    pair = ArgsDecoder(language_model(), Head(tmp_path / "head.safetensors", labels=share))
    (along,) = pair.token_rewards(tokens(9), [7])
    with torch.no_grad():
        hidden = language_model().base_model(torch.tensor([[*tokens(9), 7]])).last_hidden_state
    outputs = weight @ hidden[0, -1]
    assert along == pytest.approx((outputs[0] - 0.5 * outputs[2]).item(), abs=1e-4)
    with pytest.raises(RewardHeadError, match="3 outputs"):
        ArgsDecoder(language_model(), Head(tmp_path / "head.safetensors"))
    with pytest.raises(RewardHeadError, match="must be a module"):
        Head(3)


def test_lookahead_with_a_classifier_is_not_changed():
    config = DecodingConfig(k=5, max_new_tokens=8, eos_token_ids=[])
    ahead = ArgsDecoder(language_model(), reward_model(), lookahead=True)
    result = ahead.generate(tokens(9), config)[0]
    assert result.token_ids == decoder().generate(tokens(9), config)[0].token_ids
    assert not math.isnan(result.rewards[0])
