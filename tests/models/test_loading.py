"""Pairs from folders: what comes back is what was saved, and what is not safe is not loaded."""

import copy
import json
import math
import shutil

import oracle
import pytest
import torch
import transformers as t
from refusals import refuses
from safetensors.torch import load_file, save_file
from tiny_models import language_model, reward_model, tokens
from vocabularies import byte_level, sentencepiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, LoadError, PromptError, RewardHeadError
from args_fast.models import loading
from args_fast.rewards import Text

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


def test_a_reward_model_with_another_tokenizer_reads_text(pair):
    sentencepiece().save_pretrained(pair / "rm")
    loaded = load(pair)
    assert isinstance(loaded.engine.panel.rewards["rm"], Text)
    assert loaded.generate("ab", CONFIG)[0].token_ids


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


def test_a_softcap_is_not_left_to_torchs_attention(tmp_path, monkeypatch):
    """Which has none; some versions of transformers load Gemma 2 with it."""
    language_model("gemma2").save_pretrained(tmp_path)
    monkeypatch.setattr(t.Gemma2PreTrainedModel, "_supports_sdpa", True)
    model = loading.load_lm(tmp_path, torch.device("cpu"), torch.float32)
    assert model.config._attn_implementation == "eager"


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
    with refuses(LoadError, str(pair / role), "safetensors", f"args-fast convert {pair / role}"):
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
    with refuses(ConfigError, str(pair / role), "trust_remote_code=True"):
        load(pair)
    assert not ran.exists()


# ---- reward heads --------------------------------------------------------------------------------


def test_a_language_model_in_the_place_of_the_reward_model(pair):
    path = pair / "lm" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if "label" not in k}))
    with refuses(
        RewardHeadError, str(pair / "lm"), "no reward head", "rewards.Autoregressive", "head="
    ):
        ArgsDecoder.from_pretrained(pair / "lm", pair / "lm")


def test_a_checkpoint_without_a_head_is_not_given_a_random_one(pair):
    # transformers makes up what is missing, with no more than a warning.
    language_model().save_pretrained(pair / "rm")
    with refuses(RewardHeadError, "score.weight", "random", "rewards.Autoregressive", "head="):
        load(pair)


def test_a_classifier_of_several_classes(pair):
    config = copy.deepcopy(reward_model("opt").config)
    config.num_labels = 3
    t.OPTForSequenceClassification(config).save_pretrained(pair / "rm")
    with refuses(RewardHeadError, str(pair / "rm"), "3 outputs", "labels=1", "num_labels=1"):
        load(pair)


@pytest.mark.parametrize("saved_as", ["score", "token classification"])
def test_the_head_is_what_the_file_has(pair, saved_as):
    """Many configurations do not say that there is one label, and the class that has a bias is
    another than the one that is loaded."""
    rm = copy.deepcopy(reward_model())
    if saved_as == "token classification":
        rm = t.AutoModelForTokenClassification.from_config(rm.config).eval()
        rm.load_state_dict(reward_model().state_dict(), strict=False)
        torch.nn.init.constant_(rm.score.bias, 2.5)
    rm.save_pretrained(pair / "rm")
    edit(pair / "rm", id2label=None, label2id=None)
    wanted = oracle.decode(language_model(), rm, tokens(9), k=7, w=1.5, steps=8)
    (result,) = load(pair).generate(tokens(9), CONFIG)
    assert result.token_ids == wanted.tokens
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)


def test_a_head_of_another_name_is_taken(pair):
    expected = load(pair).generate(tokens(9), CONFIG)[0]
    weights = load_file(pair / "rm" / "model.safetensors")
    weights["v_head.weight"] = weights.pop("score.weight")
    save(weights, pair / "rm")
    result = load(pair).generate(tokens(9), CONFIG)[0]
    assert result.token_ids == expected.token_ids
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-5)


# ---- what is not a whole model of its kind -------------------------------------------------------


def edit(folder, **fields):
    """Change fields of a config.json; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def save(weights, folder):
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama", "lm_head.weight"),
        ("opt", "model.decoder.layers.1.fc1.weight"),
        ("gpt2", "transformer.h.0.ln_1.bias"),
        ("gpt_neox", "gpt_neox.embed_in.weight"),
    ],
)
def test_a_language_model_that_lacks_weights(pair, name, key):
    language_model(name).save_pretrained(pair / "lm")
    weights = load_file(pair / "lm" / "model.safetensors")
    del weights[key]
    save(weights, pair / "lm")
    with refuses(LoadError, str(pair / "lm"), f"lacks the weights {key}", "random"):
        load(pair)


def test_a_language_model_whose_configuration_has_one_more_layer(pair):
    edit(pair / "lm", num_hidden_layers=3)
    with refuses(LoadError, "lacks the weights model.layers.2", "and 4 more"):
        load(pair)


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_in_the_place_of_the_language_model(pair, tied):
    # With tied embeddings nothing is missing: the embedding serves as the head.
    rm = reward_model.__wrapped__()
    rm.config.tie_word_embeddings = tied
    rm.save_pretrained(pair / "lm")
    with refuses(LoadError, str(pair / "lm"), "score.weight", "not a language model", "pass it as"):
        load(pair)


def test_a_policy_with_a_value_head_is_a_language_model(pair):
    weights = load_file(pair / "lm" / "model.safetensors")
    save(weights | {"v_head.summary.weight": torch.ones(1, 32)}, pair / "lm")
    (expected,) = ArgsDecoder(language_model(), reward_model("opt")).generate(tokens(9), CONFIG)
    assert load(pair).generate(tokens(9), CONFIG)[0].token_ids == expected.token_ids


def test_a_base_model_in_the_place_of_the_language_model(pair):
    language_model().model.save_pretrained(pair / "lm")
    with refuses(LoadError, "lacks the weights lm_head.weight", "*ForCausalLM"):
        load(pair)


@pytest.mark.parametrize(
    ("role", "key"),
    [
        ("lm", "model.layers.1.self_attn.q_proj.bias"),  # a configuration without attention_bias
        ("lm", "lm_head.bias"),
        ("lm", "model.layers.2.mlp.up_proj.weight"),  # one of fewer layers
        ("lm", "model.layers.0.mlp.up_proj.weight_scale_inv"),  # one without its quantization
        ("rm", "model.decoder.layers.0.fc1.lora_A.weight"),  # an adapter that is not merged
    ],
)
def test_weights_that_would_be_dropped(pair, role, key):
    weights = load_file(pair / role / "model.safetensors")
    save(weights | {key: torch.ones(1, 32)}, pair / role)
    with refuses(LoadError, str(pair / role), key, "would drop", "config.json"):
        load(pair)


@pytest.mark.parametrize(
    "key", ["vision_tower.patch.weight", "mtp.layers.0.weight", "model.rotary_emb.inv_freq"]
)
def test_weights_of_other_parts_are_not_needed(pair, key):
    weights = load_file(pair / "lm" / "model.safetensors")
    save(weights | {key: torch.ones(4)}, pair / "lm")
    assert load(pair).generate(tokens(9), CONFIG)


def test_layers_that_draft_tokens_are_not_needed(pair):
    weights = load_file(pair / "lm" / "model.safetensors")
    save(weights | {"model.layers.2.eh_proj.weight": torch.ones(4)}, pair / "lm")
    edit(pair / "lm", num_nextn_predict_layers=1)
    assert load(pair).generate(tokens(9), CONFIG)


@pytest.mark.parametrize("role", ["lm", "rm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_numbers(pair, role, value):
    weights = load_file(pair / role / "model.safetensors")
    key = sorted(weights)[3]
    weights[key].view(-1)[-1] = value
    save(weights, pair / role)
    with refuses(LoadError, str(pair / role), "NaN or infinity", key):
        load(pair)


@pytest.mark.parametrize("role", ["lm", "rm"])
@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
@pytest.mark.parametrize("whole", [False, True], ids=["alone", "next to a model"])
def test_an_adapter_without_its_weights(pair, role, task, whole):
    fields = {"peft_type": "LORA", "task_type": task, "base_model_name_or_path": "org/base"}
    (pair / role / "adapter_config.json").write_text(json.dumps(fields))
    if not whole:
        (pair / role / "config.json").unlink()
    words = ["adapter_model.safetensors"]
    if (role, task) == ("lm", "SEQ_CLS"):
        words = ["adapter of a reward model", "SEQ_CLS", "org/base", "pass it as the reward model"]
    with refuses(LoadError, str(pair / role), *words):
        load(pair)


def test_a_multimodal_language_model(pair):
    """Its text part decodes; AutoModelForCausalLM does not know it."""
    lm = qwen2_vl()
    lm.save_pretrained(pair / "lm")
    wanted = oracle.decode(lm, reward_model("opt"), tokens(9), k=7, w=1.5, steps=8)
    (result,) = load(pair).generate(tokens(9), CONFIG)
    assert result.token_ids == wanted.tokens


def qwen2_vl():
    text = reward_model().config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
    names = {name: text[name] for name in names} | {"rope_parameters": rope}
    special = {"image_token_id": 60, "video_token_id": 59, "vision_start_token_id": 58}
    config = t.Qwen2VLConfig(
        text_config=names, vision_config=vision, vision_end_token_id=57, **special
    )
    torch.manual_seed(4)
    model = t.Qwen2VLForConditionalGeneration(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def test_a_model_that_is_not_a_language_model_at_all(pair):
    edit(pair / "lm", model_type="vit", architectures=["ViTModel"])
    with refuses(LoadError, "language model", str(pair / "lm"), "ViTConfig"):
        load(pair)


# ---- damaged files -------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5678\n"


@pytest.mark.parametrize("role", ["lm", "rm"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("fate", ["cut", "empty", "pointer"])
def test_a_damaged_file_is_named(pair, role, file, fate):
    path = pair / role / file
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-7], "empty": b"", "pointer": POINTER}[fate])
    words = {"cut": ["download it again"], "empty": ["is empty"], "pointer": ["git lfs pull"]}
    with refuses(LoadError, str(path), *words[fate]):
        load(pair)


def test_a_shard_that_is_missing_is_named(pair):
    language_model().save_pretrained(pair / "lm", max_shard_size="20KB")
    (pair / "lm" / "model.safetensors").unlink()
    shards = sorted((pair / "lm").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load(pair).generate(tokens(9), CONFIG)
    shards[1].unlink()
    with refuses(LoadError, str(shards[1]), "is missing"):
        load(pair)


def test_a_folder_without_weights(pair):
    (pair / "lm" / "model.safetensors").unlink()
    with refuses(LoadError, str(pair / "lm"), "no model.safetensors", "it has config.json"):
        load(pair)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 48), ("vocab_size", "61"), ("rope_parameters", 7)]
)
def test_a_configuration_that_does_not_fit_the_weights(pair, field, value):
    edit(pair / "lm", **{field: value})
    with refuses(LoadError, f"of {pair / 'lm'} cannot be loaded"):
        load(pair)


@pytest.mark.parametrize("path", ["/does/not/exist", "./nor/this", "a/b/c", "~/nowhere-at-all"])
def test_a_folder_that_does_not_exist(path, saved):
    for pair in ((path, saved / "rm"), (saved / "lm", path)):
        with refuses(LoadError, f"there is no folder {path}", "hub id"):
            ArgsDecoder.from_pretrained(*pair)


@pytest.mark.parametrize("path", [None, 3, ""])
def test_what_is_not_a_path(path, saved):
    with refuses(LoadError, repr(path), "hub id"):
        ArgsDecoder.from_pretrained(path, saved / "rm")
    with refuses(LoadError, repr(path), "hub id"):
        ArgsDecoder.from_pretrained(saved / "lm", path)


def test_a_file_in_the_place_of_a_folder(saved):
    with refuses(LoadError, "is a file", "give the folder"):
        ArgsDecoder.from_pretrained(saved / "lm" / "model.safetensors", saved / "rm")


def test_a_hub_id_without_a_hub(saved, monkeypatch):
    # The variable of this name is read when the hub's package is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refuses(LoadError, "org/nothing is not a folder here", "the hub"):
        ArgsDecoder.from_pretrained("org/nothing", saved / "rm")


def test_part_of_another_head_is_refused(pair):
    file = pair / "rm" / "model.safetensors"
    save_file(load_file(file) | {"classifier.bias": torch.ones(1)}, file, metadata={"format": "pt"})
    with refuses(RewardHeadError, "classifier.bias next to score.weight", "Classifier(model, head"):
        load(pair)


def panic(*_, **__):
    """What tokenizers, which is written in Rust, raises where its own state is impossible."""
    raise type("PanicException", (BaseException,), {})("no entry found for key")


def test_a_panic_of_the_tokenizer_is_a_load_error(pair, monkeypatch):
    monkeypatch.setattr(t.PreTrainedTokenizerFast, "__call__", panic)
    with refuses(LoadError, "tokenizer", "PanicException: no entry found"):
        load(pair)


@pytest.mark.parametrize("fault", [panic, lambda *_, **__: [][0]])
def test_a_tokenizer_that_fails_in_use_is_a_prompt_error(saved, monkeypatch, fault):
    decoder = load(saved)
    monkeypatch.setattr(type(decoder.tokenizer), "__call__", fault)
    with refuses(PromptError, "the tokenizer cannot encode the prompt", "its ids"):
        decoder.generate("abc", CONFIG)
