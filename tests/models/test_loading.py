"""Pairs from folders: what comes back is what was saved, and what is not safe is not loaded."""

import json
import math
import shutil

import pytest
import torch
from refusals import refuses
from tiny_models import language_model, reward_model, tokens
from vocabularies import byte_level, sentencepiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, PairMismatchError, RewardHeadError
from args_fast.models import loading

CONFIG = DecodingConfig(k=7, max_new_tokens=8, eos_token_ids=[])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pair with tokenizers, as save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("pair")
    for role, model in (("lm", language_model()), ("rm", reward_model("opt"))):
        model.save_pretrained(folder / role)
        byte_level().save_pretrained(folder / role)
    return folder


@pytest.fixture
def pair(saved, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(saved, tmp_path / "pair")
    return tmp_path / "pair"


def load(folder, **options):
    return ArgsDecoder.from_pretrained(folder / "lm", folder / "rm", **options)


def test_a_saved_pair_gives_the_tokens_of_the_models_it_was_saved_from(saved):
    (expected,) = ArgsDecoder(language_model(), reward_model("opt")).generate(tokens(9), CONFIG)
    for paths in (saved, str(saved)):
        loaded = ArgsDecoder.from_pretrained(f"{paths}/lm", f"{paths}/rm", max_batch_size=3)
        (result,) = loaded.generate(tokens(9), CONFIG)
        assert result.token_ids == expected.token_ids
        assert result.rewards == pytest.approx(expected.rewards, abs=1e-5)
        assert result.text == byte_level().decode(result.token_ids, skip_special_tokens=True)
        assert loaded.max_batch_size == 3


def test_a_pair_without_tokenizers_takes_ids(pair):
    for name in loading.TOKENIZER_FILES:
        for role in ("lm", "rm"):
            (pair / role / name).unlink(missing_ok=True)
    loaded = load(pair)
    assert loaded.tokenizer is None
    assert loaded.generate(tokens(9), CONFIG)[0].text is None


def test_the_reward_model_may_come_without_a_tokenizer(pair):
    for name in loading.TOKENIZER_FILES:
        (pair / "rm" / name).unlink(missing_ok=True)
    assert load(pair).generate("ab", CONFIG)[0].text


def test_a_reward_model_with_another_tokenizer_is_refused(pair):
    sentencepiece().save_pretrained(pair / "rm")
    with refuses(PairMismatchError, "different tokenizers", "of 61 tokens"):
        load(pair)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_dtype_auto_is_float32_on_the_cpu(tmp_path, stored):
    torch.manual_seed(0)
    for role, kind, seed in (("lm", language_model, 5), ("rm", reward_model, 6)):
        model = kind.__wrapped__(seed=seed).to(stored)
        model.save_pretrained(tmp_path / role)
    loaded = load(tmp_path, device="auto" if not torch.cuda.is_available() else "cpu")
    assert loaded.device == torch.device("cpu")
    for model in (loaded.language_model, loaded.reward_model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
    assert loading.resolve_dtype("auto", torch.device("cuda")) == "auto"  # the checkpoint's own


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_a_dtype_that_is_asked_for_is_the_one_that_decodes(saved, given, dtype):
    loaded = load(saved, device="cpu", dtype=given)
    for model in (loaded.language_model, loaded.reward_model):
        assert {p.dtype for p in model.parameters()} == {dtype}
    lm, rm = loaded.engine.caches
    assert lm.k_pages.dtype == rm.v_pages.dtype == dtype
    prompts = [tokens(1), tokens(17), tokens(30)]
    for result, alone in zip(loaded.generate(prompts, CONFIG), prompts, strict=True):
        assert len(result.token_ids) == 8
        assert all(p <= 0 for p in result.logprobs)
        assert all(map(math.isfinite, result.rewards))
        assert result.prompt_token_ids == alone


@pytest.mark.parametrize(("device", "dtype"), [("tpu", "auto"), ("cpu", "float8")])
def test_bad_names_are_told_before_anything_is_loaded(device, dtype):
    with pytest.raises(ConfigError):
        ArgsDecoder.from_pretrained("/does/not/exist", "/nor/this", device=device, dtype=dtype)


# ---- safety --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["lm", "rm"])
def test_only_safetensors_are_loaded(pair, role):
    model = language_model() if role == "lm" else reward_model("opt")
    (pair / role / "model.safetensors").unlink()
    torch.save(model.state_dict(), pair / role / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(pair)


@pytest.mark.parametrize("role", ["lm", "rm"])
def test_code_that_comes_with_a_model_is_not_run(pair, role, tmp_path):
    ran = tmp_path / "ran"
    (pair / role / "custom.py").write_text(f"open({str(ran)!r}, 'w')\n")
    path = pair / role / "config.json"
    config = json.loads(path.read_text())
    config["model_type"] = "custom"
    config["auto_map"] = {
        "AutoConfig": "custom.Config",
        "AutoModelForCausalLM": "custom.Model",
        "AutoModelForSequenceClassification": "custom.Model",
    }
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(pair)
    assert not ran.exists()


# ---- reward heads --------------------------------------------------------------------------------


def test_a_language_model_in_the_place_of_the_reward_model(pair):
    path = pair / "lm" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if "label" not in k}))
    with refuses(RewardHeadError, str(pair / "lm"), "num_labels = 2", "no reward head"):
        ArgsDecoder.from_pretrained(pair / "lm", pair / "lm")


def test_a_checkpoint_without_a_head_is_not_given_a_random_one(pair):
    # transformers makes up what is missing, with no more than a warning.
    language_model().save_pretrained(pair / "rm")
    with refuses(RewardHeadError, str(pair / "rm"), "score.weight", "random"):
        load(pair)


def test_a_classifier_of_several_classes(pair):
    model = reward_model.__wrapped__("opt")
    model.config.num_labels = 3
    model.save_pretrained(pair / "rm")
    with refuses(RewardHeadError, "num_labels = 3", "must be 1"):
        load(pair)
