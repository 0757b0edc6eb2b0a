"""Adapters on the language model's weights next to a model of its own, a head and requests without
a reward: each request gets the tokens that it gets alone, whatever happens around it."""

import lora
import pytest
import torch
from hypothesis import Phase, settings
from made_up_rewards import OnHost
from sizes import examples
from tiny_models import decoder, language_model
from traffic import NAIVE, REWARD, Traffic

from args_fast.rewards import Adapter, Head


@pytest.fixture(scope="module")
def rewards():
    torch.manual_seed(0)
    made = {
        "reward": decoder().engine.panel.rewards["reward"],
        "adapter": Adapter(lora.adapted(language_model(), seed=3)),
        "other": Adapter(lora.adapted(language_model(), seed=4, r=2, use_rslora=True)),
        "head": Head(torch.nn.Linear(32, 1)),
        "host": OnHost(),
    }
    for reward in made.values():
        reward.attach(decoder().engine.lm, None)
    assert made["adapter"].shares_weights
    assert made["other"].shares_weights
    return made


@pytest.fixture
def naive(monkeypatch, rewards):
    head = rewards["head"].head.module

    @torch.no_grad()
    def of_hidden(ids):
        states = language_model().base_model(torch.tensor([list(ids)])).last_hidden_state
        return head(states[0, -1]).item()

    monkeypatch.setitem(NAIVE, "head", of_hidden)
    for name, seed, options in (("adapter", 3, {}), ("other", 4, {"r": 2, "use_rslora": True})):
        model = lora.adapted(language_model(), seed=seed, **options)
        monkeypatch.setitem(NAIVE, name, lora.of_text(model))


class MixedAdapters(Traffic):
    kinds = (
        {"adapter": 1.0},
        REWARD,
        {"adapter": 1.0, "reward": -1.0},
        {"head": 1.0},
        {"other": 1.0},
        {"adapter": 0.5, "other": 1.0, "host": 1.0},
    )
    figures = dict.fromkeys(Traffic.figures, 0)


def test_any_interleaving_gives_each_request_its_own_tokens(rewards, naive):
    MixedAdapters.rewards = rewards
    case = MixedAdapters.TestCase()
    case.settings = settings(
        stateful_step_count=12, max_examples=examples(5), phases=[Phase.generate]
    )
    case.runTest()
    figures = MixedAdapters.figures
    print(figures)
    assert figures["discarded"] <= figures["requests"] * 0.1
    for figure in ("requests", "preempted", "cancelled", "waited"):
        assert figures[figure] > 0, figure
