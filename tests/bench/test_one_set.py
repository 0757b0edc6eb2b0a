"""The measurement of one set of weights runs, and counts what it says."""

import pytest
import torch
from tiny_models import language_model, tokens

from args_fast.bench import one_set

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("one_set")
    language_model().save_pretrained(path)
    return str(path)


def test_ways_give_the_same_tokens_and_times(folder):
    pairs = one_set.decoders(folder, torch.float32, max_batch_size=1)
    decoded = {name: one_set.decode(name, pair, tokens(9), 6) for name, pair in pairs.items()}
    guided = [ids for name, ids in decoded.items() if name != "greedy"]
    assert len(guided) == 4
    assert all(ids == guided[0] for ids in guided)
    measured = one_set.steps(pairs, tokens(9), new=3, rounds=1)
    assert measured.keys() == pairs.keys()


def test_bytes_of_a_token(folder):
    pairs = one_set.decoders(folder, torch.float32, lookahead=True, fused_layers=False)
    found = {name: one_set.computed(name, pair, tokens(9)) for name, pair in pairs.items()}
    lm = pairs["greedy"].language_model
    layers = sum(p.nbytes for n, p in lm.model.layers.named_parameters() if "norm" not in n)
    whole = layers + lm.lm_head.weight.nbytes
    terms = sum(p.nbytes for p in _terms(pairs["Adapter, one pass"]))
    assert found["greedy"][0] == found["Head"][0] == whole
    assert found["separate pair"][0] == whole + layers
    assert found["Adapter, one pass"][0] == whole + terms
    assert found["Adapter, one pass"][1] < found["separate pair"][1]


def _terms(pair):
    (reward,) = pair.engine.panel.rewards.values()
    return reward.adapted.terms.tensors()
