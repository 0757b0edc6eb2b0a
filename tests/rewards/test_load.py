"""``rewards.load`` and rewards as data: which kind a folder becomes, with which options."""

import copy
import sys

import oracle
import pytest
import torch
import transformers as t
from cpp_ops import needs_cpp
from encoders import encoder
from refusals import refuses
from safetensors.torch import save_file
from tiny_models import language_model, reward_model, tokens
from vocabularies import byte_level, sentencepiece, wordpiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, LoadError, PairMismatchError, RewardHeadError
from args_fast.models.compact import CompactLinear
from args_fast.rewards import Classifier, Text, load

CHATML = "{% for m in messages %}<s>{{ m.role[0] }}.{{ m.content }}</s>\n{% endfor %}"


def saved(folder, model, tokenizer=None, template=None):
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("rewards")
    config = copy.deepcopy(reward_model().config)
    config.num_labels, config.id2label = 2, {0: "bad", 1: "good"}
    torch.manual_seed(3)
    two = t.LlamaForSequenceClassification(config).eval()
    return {
        "lm": saved(home / "lm", language_model(), byte_level()),
        "plain": saved(home / "plain", reward_model(), byte_level()),
        "chat": saved(home / "chat", reward_model(), byte_level(), CHATML),
        "two": saved(home / "two", two, byte_level()),
        "other": saved(home / "other", reward_model(), sentencepiece()),
        "encoder": saved(home / "encoder", encoder("bert"), wordpiece()),
        "alone": saved(home / "alone", reward_model()),
        "second": saved(home / "second", language_model(seed=5), byte_level()),
    }


@pytest.mark.parametrize(
    ("folder", "options", "kind"),
    [
        ("plain", {}, Classifier),
        ("chat", {"closing_ids": [4]}, Classifier),
        ("alone", {}, Classifier),
        ("plain", {"template": "pair"}, Text),
        ("other", {}, Text),
        ("encoder", {"template": "pair", "too_long": "left"}, Text),
        ("two", {"labels": "good"}, Classifier),
    ],
)
def test_the_kind_that_a_folder_becomes(folders, folder, options, kind):
    by_path = load(folders[folder], lm=folders["lm"], **options)
    by_tokenizer = load(folders[folder], tokenizer=byte_level(), device="cpu", **options)
    for reward in (by_path, by_tokenizer):
        assert type(reward) is kind
        assert reward.name == folder
    assert load(folders[folder], lm=language_model(), name="mine", **options).name == "mine"


def test_a_model_gives_device_and_dtype(folders):
    half = copy.deepcopy(language_model()).to(torch.bfloat16)
    assert load(folders["plain"], lm=half).model.dtype == torch.bfloat16
    assert load(folders["plain"], lm=half, dtype="float32").model.dtype == torch.float32


def test_labels_and_closing_ids_reach_the_reward(folders):
    model = t.AutoModelForSequenceClassification.from_pretrained(folders["two"]).eval()

    def naive(ids):
        with torch.no_grad():
            hidden = model.model(torch.tensor([[*ids, 4, 5]])).last_hidden_state[0, -1]
            outputs = model.score(hidden)
        return (outputs[1] - 0.5 * outputs[0]).item()

    rm = {"two": {"path": folders["two"], "labels": {"good": 1, 0: -0.5}, "closing_ids": [4, 5]}}
    pair = ArgsDecoder.from_pretrained(folders["lm"], rm)
    config = DecodingConfig(k=5, w=2.0, max_new_tokens=7, eos_token_ids=[])
    (result,) = pair.generate(tokens(9), config)
    expected = oracle.decode(language_model(), naive, tokens(9), k=5, w=2.0, steps=7)
    assert expected.margin > 1e-5
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)


def test_a_head_in_a_file_next_to_a_language_model(folders, tmp_path):
    save_file({"weight": torch.ones(1, 32)}, folders["second"] / "mine.safetensors")
    reward = load(folders["second"], lm=folders["lm"], head="mine.safetensors")
    assert torch.equal(reward.head.module.weight, torch.ones(1, 32))
    with refuses(RewardHeadError, "score.weight", "Autoregressive", "head="):
        load(folders["second"], lm=folders["lm"])


@needs_cpp
@pytest.mark.parametrize(("quantization", "stored"), [(None, "bfloat16"), ("int8", "int8")])
def test_weights_lie_as_in_a_pair_that_is_loaded(folders, tmp_path, quantization, stored):
    model = copy.deepcopy(reward_model())
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    rm = saved(tmp_path / "rm", model, byte_level())
    alone = load(rm, lm=folders["lm"], device="cpu", quantization=quantization)
    as_data = {"rm": {"path": rm, "quantization": quantization}}
    pairs = [
        ArgsDecoder.from_pretrained(folders["lm"], *of, device="cpu", rm_quantization=kind)
        for *of, kind in ((alone, None), (as_data, None), (rm, quantization))
    ]
    for pair in pairs:
        (reward,) = pair.engine.panel.rewards.values()
        layers = [m for m in reward.model.modules() if isinstance(m, CompactLinear)]
        assert len(layers) == 14  # of two layers of llama
        assert {layer.weight.dtype for layer in layers} == {getattr(torch, stored)}
    results = [pair.generate(tokens(9), DecodingConfig(max_new_tokens=4)) for pair in pairs]
    assert results[0] == results[1] == results[2]


def test_strict_tokenizers(folders):
    assert load(folders["plain"], lm=folders["lm"], tokenizers="strict")
    with refuses(PairMismatchError, "different tokenizers"):
        load(folders["other"], lm=folders["lm"], tokenizers="strict")
    with refuses(PairMismatchError, "different tokenizers"):
        ArgsDecoder.from_pretrained(folders["lm"], folders["other"], tokenizers="strict")
    with refuses(ConfigError, "'alike' or 'strict'"):
        load(folders["plain"], tokenizers="same")


@pytest.mark.parametrize(
    ("folder", "options", "error", "words"),
    [
        ("encoder", {"closing_ids": [4]}, ConfigError, "template='chat'"),
        ("two", {}, RewardHeadError, "labels=1"),
        ("plain", {"template": "chat"}, ConfigError, "chat template"),
        ("plain", {"template": "jinja"}, ConfigError, "template is 'jinja'"),
        ("alone", {"template": "pair"}, LoadError, "without a tokenizer"),
        ("plain", {"quantization": "int4"}, ConfigError, "quantization is 'int4'"),
    ],
)
def test_what_load_refuses(folders, folder, options, error, words):
    with refuses(error, words):
        load(folders[folder], lm=folders["lm"], **options)


# ---- rewards as data -----------------------------------------------------------------------------


@pytest.fixture
def function(tmp_path, monkeypatch):
    """A module with a reward function."""
    (tmp_path / "liked.py").write_text(
        "def vowels(prompts, responses):\n"
        "    return [sum(c in 'aeiou' for c in r) / 4 for r in responses]\n"
        "NUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "liked:vowels"
    sys.modules.pop("liked", None)


def test_rewards_with_weights_are_a_mixture(folders, function):
    rm = {
        "model": {"path": str(folders["plain"]), "weight": 0.5},
        "vowels": {"function": function, "weight": -2.0},
        "object": Classifier(reward_model("opt")),
    }
    pair = ArgsDecoder.from_pretrained(folders["lm"], rm)
    (request,) = pair.requests(tokens(5), DecodingConfig(max_new_tokens=4))
    assert request.weights == {"model": 0.5, "vowels": -2.0, "object": 1.0}
    (result,) = pair.generate(tokens(5), DecodingConfig(max_new_tokens=4))
    assert sorted(result.rewards_by_name) == ["model", "object", "vowels"]
    (request,) = pair.requests(tokens(5), DecodingConfig(reward="vowels", max_new_tokens=4))
    assert request.weights == {"vowels": 1.0}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"path": "x", "colour": 1}, "'colour'"),
        ({"template": "chat"}, "has no path"),
        ({"function": "liked:vowels", "labels": 1}, "'labels'"),
        ({"function": "liked"}, "module:name"),
        ({"function": "no_such_module:f"}, "cannot be imported"),
        ({"function": "liked:NUMBER"}, "no function 'NUMBER'"),
        ({"function": "liked:absent"}, "no function 'absent'"),
    ],
)
def test_a_spec_that_is_not_understood(folders, function, spec, words):
    with refuses(ConfigError, words):
        ArgsDecoder.from_pretrained(folders["lm"], {"mine": spec})
