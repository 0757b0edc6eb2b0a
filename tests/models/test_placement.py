"""The weights of a model that was loaded lie in one piece, and are the same weights."""

import copy
from itertools import pairwise

import pytest
import torch
from tiny_models import language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.large_pages import LARGE_PAGE
from args_fast.models.compact import quantize_linears
from args_fast.models.placement import LINE, gather

CONFIG = DecodingConfig(k=5, w=1.5, max_new_tokens=6, return_candidates=True)


def large(family):
    """A copy of a tiny model that fills large pages, so that it is moved."""
    model = copy.deepcopy(language_model(family))
    model.filling = torch.nn.Parameter(torch.randn(LARGE_PAGE // 4))
    return model


def weights_of(model):
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "int8"])
def test_values_and_objects_stay(family):
    model = large("llama" if family == "int8" else family)
    if family == "int8":
        quantize_linears(model)
    before = weights_of(model)
    values = [weight.detach().clone() for weight in before]
    tied = [[a.data_ptr() == b.data_ptr() for a in before] for b in before]
    gather(model)
    after = weights_of(model)
    for old, value, new in zip(before, values, after, strict=True):
        assert new is old
        assert torch.equal(new.detach(), value)
    assert [[a.data_ptr() == b.data_ptr() for a in after] for b in after] == tied
    begins = sorted({weight.data_ptr(): weight.nbytes for weight in after}.items())
    assert begins[0][0] % LARGE_PAGE == 0
    for (begin, size), (following, _) in pairwise(begins):
        assert begin % LINE == 0
        assert 0 <= following - begin - size < LINE


def test_small_models_and_other_devices_stay():
    model = copy.deepcopy(language_model())
    addresses = [weight.data_ptr() for weight in weights_of(model)]
    gather(model)
    assert [weight.data_ptr() for weight in weights_of(model)] == addresses
    gather(large("llama").to("meta"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_decode_keeps_its_bits(family):
    lm = large(family)
    decoder = ArgsDecoder(lm, reward_model("opt"))
    (before,) = decoder.generate(tokens(9), CONFIG)
    gather(lm)  # between decodes, as a caller may move weights
    (after,) = decoder.generate(tokens(9), CONFIG)
    assert (after.token_ids, after.logprobs, after.rewards) == (
        before.token_ids,
        before.logprobs,
        before.rewards,
    )
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(0.5)
    (changed,) = decoder.generate(tokens(9), CONFIG)
    assert changed.logprobs != after.logprobs


def test_a_loaded_pair_is_gathered(tmp_path, monkeypatch):
    gathered = []
    monkeypatch.setattr("args_fast.models.placement.gather", gathered.append)
    language_model().save_pretrained(tmp_path / "lm")
    reward_model().save_pretrained(tmp_path / "rm")
    decoder = ArgsDecoder.from_pretrained(tmp_path / "lm", tmp_path / "rm", device="cpu")
    assert [type(model).__name__ for model in gathered] == [
        type(decoder.language_model).__name__,
        type(reward_model()).__name__,
    ]
