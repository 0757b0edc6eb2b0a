"""A LoRA adapter as PEFT writes it: merged into its base, whatever the base is called now."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import language_model, reward_model, tokens

from args_fast import ArgsDecoder, rewards
from args_fast.cli.pair import find_pair
from args_fast.errors import LoadError, RewardHeadError

LORA = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["q_proj", "up_proj"]}


def load(folder, **options):
    device = torch.device("cpu")
    return rewards.load(folder, tokenizer=None, device=device, dtype=torch.float32, **options)


@pytest.fixture
def base(tmp_path):
    model = reward_model("llama")
    model.base_model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(folder):
    """The adapted model, whose folder names a base that has moved."""
    config = LoraConfig(**LORA, modules_to_save=["score"])
    model = get_peft_model(copy.deepcopy(reward_model("llama")), config)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "score" in name:
            torch.nn.init.normal_(weight)
    model.peft_config["default"].base_model_name_or_path = "./moved"
    model.save_pretrained(folder)
    return model.eval()


def test_adapter_guides_as_its_own_forward(base, tmp_path):
    model = adapter(tmp_path / "adapter")
    decoder = ArgsDecoder(language_model("llama"), load(tmp_path / "adapter", base=base))
    text, continuation = tokens(9), [5, 6, 7]
    with torch.inference_mode():
        forward = model(torch.tensor([text + continuation])).logits.item()
    assert decoder.rewards([text], [continuation]) == pytest.approx([forward], abs=1e-4)


def test_adapter_whose_base_has_moved_is_refused_by_name(tmp_path):
    adapter(tmp_path / "adapter")
    with pytest.raises(LoadError, match="moved"):
        load(tmp_path / "adapter")


def test_adapter_without_a_base_name_says_how_to_give_it(tmp_path):
    adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(LoadError, match=r"pass base="):
        load(tmp_path / "adapter")


def test_adapter_without_a_trained_head_is_refused(base, tmp_path):
    folder = tmp_path / "adapter"
    adapter(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "score" not in name}
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(RewardHeadError, match="no trained reward head"):
        load(folder, base=base)


def test_commands_take_an_adapter_as_the_reward_only(base, tmp_path):
    folder = str(tmp_path / "adapter")
    adapter(folder)
    assert find_pair(str(base), folder)["rm"] == folder
    with pytest.raises(LoadError, match="is an adapter"):
        find_pair(folder, str(base))


def test_adapter_that_cannot_be_merged_is_refused(tmp_path):
    """Virtual tokens before the prompt are not weights."""
    base = reward_model("llama")
    base.save_pretrained(tmp_path / "base")
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    model = get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(LoadError, match="PROMPT_TUNING, which has no weights to merge"):
        load(tmp_path / "adapter", base=tmp_path / "base")
