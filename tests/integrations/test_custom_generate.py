"""The same loop from a pipeline, and from the folder that transformers loads by its path."""

import shutil
from pathlib import Path

import pytest
import torch
from refusals import refuses
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline
from transformers import dynamic_module_utils as modules

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError
from args_fast.integrations.transformers import reward_guided
from args_fast.tiny_pair import LM, RM

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "huggingface"
TEXT = "\n\nHuman: How do I keep basil alive indoors?\n\nAssistant:"
MESSAGES = [{"role": "user", "content": "How do I keep basil alive indoors?"}]
NEW = 12


@pytest.fixture(scope="module")
def reward():
    return AutoModelForSequenceClassification.from_pretrained(RM, dtype="float32").eval()


@pytest.fixture(scope="module")
def decoder():
    return ArgsDecoder.from_pretrained(LM, RM, device="cpu")


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """Arguments of ``generate`` that load the folder; what transformers copies stays here."""
    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return {"custom_generate": str(FOLDER), "trust_remote_code": True}


def test_folder_has_what_a_repository_needs():
    readme = (FOLDER / "README.md").read_text()
    assert "custom_generate" in readme.partition("tags:")[2].partition("---")[0]
    assert (FOLDER / "custom_generate" / "requirements.txt").read_text() == "args-fast\n"


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.7}])
def test_folder_is_the_loop(pair, reward, loaded, options):
    lm, tokenizer = pair
    inputs = tokenizer([TEXT, "Hello"], padding=True, return_tensors="pt")
    common = {**inputs, "max_new_tokens": NEW, "return_dict_in_generate": True, **options}
    expected = lm.generate(custom_generate=reward_guided(reward, 5, 2.0, seed=3), **common)
    output = lm.generate(**loaded, reward=reward, k=5, w=2.0, seed=3, **common)
    assert torch.equal(output.sequences, expected.sequences)
    assert type(output).__name__ == "RewardGuidedOutput"


def test_folder_takes_paths_streamers_and_stop_strings(pair, loaded, capsys):
    from transformers import TextStreamer

    lm, tokenizer = pair
    output = lm.generate(
        **tokenizer(TEXT, return_tensors="pt"),
        **loaded,
        reward=str(RM),
        tokenizer=tokenizer,
        engine={"max_batch_size": 2},
        streamer=TextStreamer(tokenizer, skip_prompt=True),
        stop_strings=["."],
        max_new_tokens=60,
        do_sample=False,
    )
    text = tokenizer.decode(output[0])
    assert text.endswith(".")
    assert text.removeprefix(TEXT).strip() == capsys.readouterr().out.strip()


def test_folder_says_what_is_missing(pair, reward, loaded):
    lm, tokenizer = pair
    inputs = {**tokenizer(TEXT, return_tensors="pt"), "max_new_tokens": 2}
    with refuses(ConfigError, "reward is missing"):
        lm.generate(**inputs, **loaded)
    with refuses(ConfigError, "stop_strings needs tokenizer="):
        lm.generate(**inputs, **loaded, reward=reward, stop_strings=["."])
    with pytest.raises(ValueError, match="trust_remote_code"):
        lm.generate(**inputs, custom_generate=str(FOLDER), trust_remote_code=False, reward=reward)


def test_repository_with_weights_and_the_folder(pair, reward, loaded, tmp_path):
    """``from_pretrained`` replaces the model's ``generate`` where it finds such a folder."""
    lm, tokenizer = pair
    repository = tmp_path / "repository"
    shutil.copytree(LM, repository)
    shutil.copytree(FOLDER / "custom_generate", repository / "custom_generate")
    own = AutoModelForCausalLM.from_pretrained(
        repository, dtype="float32", trust_remote_code=True
    ).eval()
    inputs = {**tokenizer(TEXT, return_tensors="pt"), "max_new_tokens": NEW, "do_sample": False}
    expected = lm.generate(custom_generate=reward_guided(reward), **inputs)
    assert torch.equal(own.generate(reward=reward, **inputs), expected)


# ---- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [TEXT, MESSAGES], ids=["text", "messages"])
def test_pipeline(pair, reward, decoder, prompt):
    lm, tokenizer = pair
    chat = pipeline("text-generation", model=lm, tokenizer=tokenizer)
    options = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    ((output,), (second,)) = chat(
        [prompt, prompt], custom_generate=reward_guided(reward), batch_size=2, **options
    )
    (expected,) = decoder.generate(prompt, DecodingConfig(max_new_tokens=NEW))
    assert output == second == {"generated_text": expected.text}


def test_pipeline_draws_several(pair, reward, decoder):
    lm, tokenizer = pair
    chat = pipeline("text-generation", model=lm, tokenizer=tokenizer)
    outputs = chat(
        TEXT,
        custom_generate=reward_guided(reward, seed=5),
        do_sample=True,
        temperature=0.8,
        num_return_sequences=3,
        max_new_tokens=NEW,
        return_full_text=False,
    )
    config = DecodingConfig(temperature=0.8, seed=5, num_return_sequences=3, max_new_tokens=NEW)
    expected = [result.text for result in decoder.generate(TEXT, config)]
    assert [output["generated_text"] for output in outputs] == expected
