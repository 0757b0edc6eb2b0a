"""Adapters on the language model's weights next to a model of its own, a head and requests without
a reward: each request gets the tokens that it gets alone, whatever happens around it."""

import lora
import pytest
from hypothesis import Phase, settings
from made_up_rewards import OnHost
from sizes import examples
from traffic import ADAPTED, NAIVE, Traffic


@pytest.fixture
def rewards(monkeypatch):
    made, naive = lora.mixed()
    for name, of_text in naive.items():
        monkeypatch.setitem(NAIVE, name, of_text)
    return made | {"host": OnHost()}


class MixedAdapters(Traffic):
    kinds = (*ADAPTED, {"adapter": 0.5, "other": 1.0, "host": 1.0})
    figures = dict.fromkeys(Traffic.figures, 0)


def test_any_interleaving_gives_each_request_its_own_tokens(rewards):
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
