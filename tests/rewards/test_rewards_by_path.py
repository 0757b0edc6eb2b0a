"""What a folder is taken as: by path a reward is what its own model gives, or is refused."""

import copy
import json
import logging
import shutil

import peft
import pytest
import tokenizers
import torch
import transformers
from encoders import encoder, own_forward
from refusals import refuses
from safetensors.torch import load_file, save_file
from scan import deviation
from tiny_models import VOCABULARY, language_model, reward_model, tokens
from vocabularies import byte_level, unigram, wordpiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import LoadError, PairMismatchError, RewardHeadError
from args_fast.rewards import Adapter, Classifier, Text
from args_fast.rewards.loading import known_ids

CONFIG = DecodingConfig(k=4, w=1.5, max_new_tokens=4, eos_token_ids=[])


@pytest.fixture
def lm(tmp_path):
    return save(language_model(), tmp_path / "lm")


def save(model, folder, tokenizer=byte_level):
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer().save_pretrained(folder)
    return folder


def change(folder, edit, file="model.safetensors"):
    """Edit the weights in a file."""
    weights = load_file(folder / file)
    edit(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


@torch.no_grad()
def check(lm, folder, reward):
    """Decode by path; each reward is what the function of ids gives. Returns the decoder."""
    pair = ArgsDecoder.from_pretrained(lm, folder)
    (result,) = pair.generate(tokens(9), CONFIG)
    assert deviation(language_model(), reward, tokens(9), result, CONFIG) < 1e-4
    return pair


def taken_as(pair):
    (reward,) = pair.engine.panel.rewards.values()
    return type(reward)


# ---- heads of other names ------------------------------------------------------------------------


def own(head, bias=0.0, model=None):
    """A linear head on a llama's last hidden state."""
    body = (model or reward_model()).base_model
    return lambda ids: (body(torch.tensor([ids])).last_hidden_state[0, -1] @ head + bias).item()


@pytest.mark.parametrize("bias", [None, 0.75])
@pytest.mark.parametrize("name", ["v_head", "v_head.summary", "rm_head", "regression_head"])
def test_a_head_of_any_usual_name(lm, tmp_path, name, bias):
    rm = save(reward_model(), tmp_path / "rm")
    head = reward_model().score.weight[0].detach()

    def rename(weights):
        weights[f"{name}.weight"] = weights.pop("score.weight")
        if bias is not None:
            weights[f"{name}.bias"] = torch.tensor([bias])

    change(rm, rename)
    check(lm, rm, own(head, bias or 0.0))


@pytest.mark.parametrize("bias", [None, -0.5])
def test_a_head_in_a_file_next_to_a_language_model(lm, tmp_path, bias):
    other = language_model(seed=11)
    rm = save(other, tmp_path / "rm")
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(1)) * 0.3
    tensors = {"v_head.summary.weight": head}
    tensors |= {} if bias is None else {"v_head.summary.bias": torch.tensor([bias])}
    save_file(tensors, rm / "value_head.safetensors")
    check(lm, rm, own(head[0], bias or 0.0, other))


def test_several_heads_are_refused(lm, tmp_path):
    rm = save(reward_model(), tmp_path / "rm")
    change(rm, lambda weights: weights.update({"v_head.weight": torch.ones(1, 32)}))
    with refuses(RewardHeadError, "score.weight, v_head.weight", "rewards.Classifier"):
        ArgsDecoder.from_pretrained(lm, rm)


@pytest.mark.parametrize("shape", [(1, 16), (0, 32), (1, 1, 32)])
def test_a_head_that_does_not_fit_is_refused(lm, tmp_path, shape):
    rm = save(reward_model(), tmp_path / "rm")

    def rename(weights):
        del weights["score.weight"]
        weights["v_head.weight"] = torch.ones(shape)

    change(rm, rename)
    with refuses(RewardHeadError, "reward head"):
        ArgsDecoder.from_pretrained(lm, rm)


def test_a_damaged_file_of_a_head_is_named(lm, tmp_path):
    rm = save(language_model(seed=11), tmp_path / "rm")
    (rm / "value_head.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with refuses(RewardHeadError, "value_head.safetensors", "git lfs pull"):
        ArgsDecoder.from_pretrained(lm, rm)


def test_a_body_that_lacks_weights_is_refused(lm, tmp_path):
    rm = save(reward_model(), tmp_path / "rm")

    def damage(weights):
        weights["v_head.weight"] = weights.pop("score.weight")
        del weights["model.layers.1.mlp.up_proj.weight"]

    change(rm, damage)
    with refuses(LoadError, "model.layers.1.mlp.up_proj.weight"):
        ArgsDecoder.from_pretrained(lm, rm)


def test_a_class_with_a_head_of_another_name_of_its_own(lm, tmp_path):
    torch.manual_seed(4)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48}
    config = transformers.CTRLConfig(**sizes, n_positions=96, num_labels=1, initializer_range=0.3)
    ctrl = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    assert taken_as(check(lm, save(ctrl, tmp_path / "rm"), ctrl)) is Classifier


@pytest.mark.parametrize("part", ["encoder", "base"])
def test_weights_in_another_format_name_the_way(lm, tmp_path, part, request):
    if part == "encoder":
        rm = damaged = save(encoder("bert"), tmp_path / "rm", wordpiece)
    else:
        rm, damaged = request.getfixturevalue("adapter")[0], tmp_path / "base"
    torch.save(load_file(damaged / "model.safetensors"), damaged / "pytorch_model.bin")
    (damaged / "model.safetensors").unlink()
    with refuses(LoadError, "pytorch_model.bin", "args-fast convert"):
        ArgsDecoder.from_pretrained(lm, rm)


# ---- adapters ------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path):
    """(folder, the adapted model): LoRA of other parts than queries, scaled by the root of r."""
    save(reward_model("qwen2"), tmp_path / "base")
    lora = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["k_proj", "o_proj", "down_proj"],
        modules_to_save=["score"],
    )
    adapted = peft.get_peft_model(copy.deepcopy(reward_model("qwen2")), lora).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted


def of_adapted(adapted):
    adapted.base_model.model.config.pad_token_id = None
    return lambda ids: adapted(input_ids=torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_an_adapter_is_merged_into_its_base(lm, adapter, with_tokenizer):
    folder, adapted = adapter
    if with_tokenizer:
        byte_level().save_pretrained(folder)
    assert taken_as(check(lm, folder, of_adapted(adapted))) is Adapter


def test_an_adapted_model_as_an_object_stays_as_it_is(adapter):
    _, adapted = adapter
    reward = of_adapted(adapted)
    before = reward(tokens(9))
    (result,) = ArgsDecoder(language_model(), adapted).generate(tokens(9), CONFIG)
    with torch.no_grad():
        assert deviation(language_model(), reward, tokens(9), result, CONFIG) < 1e-4
    assert reward(tokens(9)) == before


def edit_fields(**fields):
    def edit(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def edit_weights(edit):
    return lambda folder: change(folder, edit, "adapter_model.safetensors")


def without(word):
    return edit_weights(lambda w: [w.pop(key) for key in list(w) if word in key])


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (without("score"), RewardHeadError, ["no trained reward head", "modules_to_save"]),
        (without("o_proj.lora_A"), LoadError, ["lacks", "o_proj.lora_A"]),
        (edit_fields(target_modules=["k_proj"]), LoadError, ["its configuration does not"]),
        (edit_fields(base_model_name_or_path=None), LoadError, ["does not name its base"]),
        (edit_fields(base_model_name_or_path="/no/such"), LoadError, ["there is no folder"]),
        (edit_fields(r="many"), LoadError, ["reward adapter"]),
        (lambda f: (f / "adapter_config.json").write_text("[]"), LoadError, ["not a JSON object"]),
        (lambda f: (f / "adapter_config.json").write_text("{"), LoadError, ["not valid JSON"]),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"{}"), LoadError, ["cut off"]),
        (lambda f: (f / "adapter_model.safetensors").unlink(), LoadError, ["save_pretrained"]),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(lm, adapter, damage, error, words):
    folder, _ = adapter
    damage(folder)
    with refuses(error, *words):
        ArgsDecoder.from_pretrained(lm, folder)


def test_an_adapter_without_peft(lm, adapter, monkeypatch):
    monkeypatch.setattr("args_fast.models.adapters.find_spec", lambda name: None)
    with refuses(LoadError, "pip install", "merge"):
        ArgsDecoder.from_pretrained(lm, adapter[0])


# ---- text ----------------------------------------------------------------------------------------


def of_text(model, tokenizer):
    """r of the text of ids."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return lambda ids: own_forward(
        model, tokenizer, byte_level().decode(ids, **options).rstrip("\ufffd")
    )


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_an_encoder_reads_text(lm, tmp_path, name):
    rm = save(encoder(name), tmp_path / "rm", wordpiece)
    assert taken_as(check(lm, rm, of_text(encoder(name), wordpiece()))) is Text


def test_an_encoder_without_a_tokenizer_is_refused(lm, tmp_path):
    rm = save(encoder("bert"), tmp_path / "rm", None)
    with refuses(LoadError, "without a tokenizer", "rewards.Text"):
        ArgsDecoder.from_pretrained(lm, rm)


def test_an_encoder_as_an_object_is_told_the_way():
    with refuses(PairMismatchError, "rewards.Text(model, tokenizer)"):
        ArgsDecoder(language_model(), encoder("roberta"))


def test_a_decoder_of_another_tokenizer_reads_text(lm, tmp_path):
    rm = save(reward_model(), tmp_path / "rm", unigram)
    assert taken_as(check(lm, rm, of_text(reward_model(), unigram()))) is Text


def test_a_decoder_that_the_engine_cannot_drive_reads_text(lm, tmp_path, caplog):
    torch.manual_seed(3)
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        num_labels=1,
        initializer_range=0.3,
        pad_token_id=0,
    )
    bloom = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    rm = save(bloom, tmp_path / "rm")
    with caplog.at_level(logging.INFO, "args_fast"):
        assert taken_as(check(lm, rm, of_text(bloom, byte_level()))) is Text
    assert "BloomForSequenceClassification" in caplog.text


# ---- one tokenizer, but for some tokens ----------------------------------------------------------


def renamed(**tokens):
    """The tokenizer with some of its unused tokens under other names, as reserved tokens."""
    content = json.loads(byte_level().backend_tokenizer.to_str())
    for old, new in tokens.items():
        id = content["model"]["vocab"].pop(f"<{old}>")
        content["model"]["vocab"][new] = id
    raw = tokenizers.Tokenizer.from_str(json.dumps(content))
    raw.add_special_tokens([tokenizers.AddedToken(new, special=True) for new in tokens.values()])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def test_reserved_tokens_may_have_other_names(lm, tmp_path):
    renamed(unused0="<|reserved|>").save_pretrained(lm)
    rm = save(reward_model(), tmp_path / "rm", lambda: renamed(unused0="<|eom|>"))
    pair = check(lm, rm, reward_model())
    assert taken_as(pair) is Classifier


def test_what_the_tokenizers_share_is_known():
    ours, model = byte_level(), reward_model()
    assert known_ids(ours, byte_level(), model).all()
    assert known_ids(ours, unigram(), model) is None
    longer = copy.deepcopy(ours)
    longer.add_tokens(["<think>"], special_tokens=True)
    assert known_ids(ours, longer, model).all()  # the reward model knows one more
    known = known_ids(longer, ours, model)  # the language model does
    assert known.tolist() == [True] * VOCABULARY + [False]


def test_ids_that_mean_nothing_to_the_reward_are_not_candidates(lm, tmp_path):
    """A reward model with fewer rows than the language model has ids."""
    shutil.rmtree(lm)
    larger = copy.deepcopy(language_model())
    larger.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    with torch.no_grad():  # the new ids are the likeliest of all
        larger.lm_head.weight[VOCABULARY:] = 3 * larger.lm_head.weight[5]
    longer = copy.deepcopy(byte_level())
    longer.add_tokens(["<think>", "</think>", "<tool>"], special_tokens=True)
    save(larger, lm, lambda: longer)
    rm = save(reward_model(), tmp_path / "rm")
    pair = ArgsDecoder.from_pretrained(lm, rm)
    (result,) = pair.generate(tokens(9), CONFIG)
    known = [True] * VOCABULARY + [False] * 3
    with torch.no_grad():
        off = deviation(larger, reward_model(), tokens(9), result, CONFIG, known=known)
    assert off < 1e-4
