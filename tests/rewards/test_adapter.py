"""LoRA adapters as people have them, against peft's own forward over whole texts, not merged."""

import copy
import json

import oracle
import peft
import pytest
import torch
import transformers as t
from refusals import refuses
from safetensors.torch import load_file, save_file
from tiny_models import language_model, reward_model, tokens
from vocabularies import byte_level, sentencepiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import LoadError, RewardHeadError
from args_fast.rewards import Adapter, Text, load

CONFIG = DecodingConfig(k=6, w=2.0, max_new_tokens=8, eos_token_ids=[])
MODULES = ["q_proj", "v_proj", "down_proj"]


def lora(task, **options):
    return peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=MODULES, task_type=task, init_lora_weights=False,
        **options,
    )  # fmt: skip


def inject(model, config):
    """What add_adapter of transformers does: 5.24 asks for a peft that is not released yet."""
    peft.inject_adapter_in_model(config, model, "default")
    model._hf_peft_config_loaded = True


def save_base(folder):
    language_model(seed=5).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path):
    """A language model that adapters stand on."""
    return save_base(tmp_path / "base")


def reward_adapter(base, labels=1, **options):
    torch.manual_seed(6)
    model = t.AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    return peft.get_peft_model(model, lora("SEQ_CLS", **options)).eval()


@torch.no_grad()
def naive(adapted, fold=None):
    """What peft's model gives at the last token of a text."""
    fold = fold or {0: 1.0}

    def reward(ids):
        model = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            outputs = model.score(hidden)
        return sum(w * outputs[i].item() for i, w in fold.items())

    return reward


def check(pair, of_text, lm=None):
    (result,) = pair.generate(tokens(9), CONFIG)
    expected = oracle.decode(lm or language_model(), of_text, tokens(9), k=6, w=2.0, steps=8)
    assert expected.margin > 1e-5
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_with_a_head(base, tmp_path, rslora):
    adapted = reward_adapter(base, use_rslora=rslora)
    adapted.save_pretrained(tmp_path / "reward")
    language_model().save_pretrained(tmp_path / "lm")
    byte_level().save_pretrained(tmp_path / "lm")
    pair = ArgsDecoder.from_pretrained(tmp_path / "lm", tmp_path / "reward")
    (reward,) = pair.engine.panel.rewards.values()
    assert isinstance(reward, Adapter)
    assert reward.name == "reward"
    check(pair, naive(adapted))
    check(ArgsDecoder(language_model(), Adapter(tmp_path / "reward")), naive(adapted))


def test_a_folder_with_several_outputs_and_closing_ids(base, tmp_path):
    adapted = reward_adapter(base, labels=2)
    adapted.save_pretrained(tmp_path / "reward")
    with refuses(RewardHeadError, "2 outputs", "labels=1"):
        Adapter(tmp_path / "reward")
    reward = load(
        tmp_path / "reward", lm=language_model(), labels={1: 1.0, 0: -1.0}, closing_ids=[4, 5]
    )
    plain = naive(adapted, {1: 1.0, 0: -1.0})
    check(ArgsDecoder(language_model(), reward), lambda ids: plain([*ids, 4, 5]))


@pytest.mark.parametrize("kind", ["PeftModel", "transformers"])
def test_an_object(base, kind):
    adapted = reward_adapter(base)
    if kind == "transformers":
        adapted = t.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
        torch.manual_seed(7)
        inject(adapted, lora(None))
    before = {name: x.clone() for name, x in adapted.state_dict().items()}
    for reward in (adapted, Adapter(adapted)):
        check(ArgsDecoder(language_model(), reward), naive(adapted))
    after = adapted.state_dict()
    assert before.keys() == after.keys()  # the caller's stays as it was
    assert all(torch.equal(x, after[name]) for name, x in before.items())


def test_an_adapter_of_a_language_model_with_a_value_head(base, tmp_path):
    """As LLaMA-Factory keeps reward models."""
    torch.manual_seed(8)
    model = t.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, lora("CAUSAL_LM")).eval()
    adapted.save_pretrained(tmp_path / "reward")
    weight, bias = torch.randn(1, 32), torch.randn(1)
    tensors = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    with refuses(RewardHeadError, "reward", "modules_to_save", "value_head.safetensors"):
        Adapter(tmp_path / "reward")
    save_file(tensors, tmp_path / "reward" / "value_head.safetensors")

    @torch.no_grad()
    def of_text(ids):
        base_model = adapted.get_base_model().base_model
        hidden = base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        return (hidden @ weight[0] + bias).item()

    check(ArgsDecoder(language_model(), load(tmp_path / "reward", lm=language_model())), of_text)


def test_another_tokenizer_reads_text(base, tmp_path):
    adapted = reward_adapter(base)
    adapted.save_pretrained(tmp_path / "reward")
    sentencepiece().save_pretrained(tmp_path / "reward")
    reward = load(tmp_path / "reward", tokenizer=byte_level())
    assert isinstance(reward, Text)


@pytest.mark.parametrize("given", ["folder", "PeftModel", "transformers"])
def test_an_adapter_of_the_language_model(base, tmp_path, given):
    torch.manual_seed(9)
    model = t.AutoModelForCausalLM.from_pretrained(base).eval()
    if given == "transformers":
        adapted = whole = model
        inject(model, lora("CAUSAL_LM"))
    else:
        adapted = peft.get_peft_model(model, lora("CAUSAL_LM")).eval()
        whole = adapted.get_base_model()
    if given == "folder":
        adapted.save_pretrained(tmp_path / "lm")
        reward_model().save_pretrained(tmp_path / "rm")
        pair = ArgsDecoder.from_pretrained(tmp_path / "lm", tmp_path / "rm")
    else:
        pair = ArgsDecoder(adapted, reward_model())
    check(pair, reward_model(), whole)


# ---- refusals ------------------------------------------------------------------------------------


def test_a_reward_adapter_in_the_place_of_the_language_model(base, tmp_path):
    reward_adapter(base).save_pretrained(tmp_path / "reward")
    with refuses(LoadError, "adapter of a reward model", "pass it as the reward model"):
        ArgsDecoder.from_pretrained(tmp_path / "reward", base)


def test_an_adapter_whose_head_was_not_trained(base, tmp_path):
    reward_adapter(base).save_pretrained(tmp_path / "reward")
    file = tmp_path / "reward" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "score" not in k}, file)
    with refuses(RewardHeadError, "no trained reward head", "random"):
        Adapter(tmp_path / "reward")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"base_model_name_or_path": "/no/such/base"}, "/no/such/base"),
        (None, "not valid JSON"),
    ],
)
def test_a_folder_that_is_not_whole(base, tmp_path, content, words):
    reward_adapter(base).save_pretrained(tmp_path / "reward")
    file = tmp_path / "reward" / "adapter_config.json"
    whole = json.loads(file.read_text())
    file.write_text("{" if content is None else json.dumps(whole | content))
    with refuses(LoadError, words):
        Adapter(tmp_path / "reward")


def test_what_is_not_an_adapter(base):
    with refuses(LoadError, "has no adapter", "rewards.Classifier"):
        Adapter(copy.deepcopy(reward_model()))
    with refuses(LoadError, "adapter_config.json", "rewards.load"):
        Adapter(base)
