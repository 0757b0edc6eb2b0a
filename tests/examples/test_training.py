"""The training examples run end to end, two steps each, and leave models that the decoder takes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.tiny_pair import HELDOUT, LM, RM

ROOT = Path(__file__).parents[2]
CONFIG = DecodingConfig(k=4, w=1.0, max_new_tokens=4)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None,
    reason="trl is not installed: pip install 'args-fast[train]'",
)


def run(script, *arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("stage", ["sft", "dpo", "policy"])
def test_policy_is_trained_and_decodes(stage, tmp_path):
    out = run(f"training/train_{stage}.py", "--steps", 2, "--prompts", 2, "--out", tmp_path)
    assert "average reward" in out
    (result,) = ArgsDecoder.from_pretrained(tmp_path, RM, device="cpu").generate("Hello", CONFIG)
    assert len(result.token_ids) == 4


def test_reward_model_is_trained_and_guides(tmp_path):
    out = run("training/train_reward.py", "--steps", 2, "--prompts", 4, "--out", tmp_path)
    assert "accuracy on 4 held-out pairs" in out
    (result,) = ArgsDecoder.from_pretrained(LM, tmp_path, device="cpu").generate("Hello", CONFIG)
    assert len(result.rewards) == len(result.token_ids)


@pytest.mark.parametrize("options", [(), ("--lora", "--every-token")])
def test_published_schema_trains(options, tmp_path):
    arguments = ("--heldout", 0.02, "--steps", 1, "--batch", 2, "--out", tmp_path)
    out = run("train_reward_model.py", "--model", LM, "--data", HELDOUT, *arguments, *options)
    assert "held-out accuracy" in out
    name = "adapter_model.safetensors" if "--lora" in options else "model.safetensors"
    assert (tmp_path / name).is_file()
