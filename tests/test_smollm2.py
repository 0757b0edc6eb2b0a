"""The real pair: what ships, what is said where its packages are missing, what is written once."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from args_fast import smollm2
from args_fast.errors import MissingPackageError

EXAMPLES = Path(__file__).parents[1] / "examples"
MEGABYTE = 1 << 20


def installed():
    try:
        smollm2.check_installed()
    except MissingPackageError:
        return False
    return True


def test_check_installed_names_what_is_missing_and_the_way(monkeypatch):
    find_spec = smollm2.importlib.util.find_spec
    monkeypatch.setattr(
        smollm2.importlib.util,
        "find_spec",
        lambda name: None if name == "gguf" else find_spec(name),
    )
    with pytest.raises(MissingPackageError, match=r"needs gguf.*pip install.*tiny_pair"):
        smollm2.lm()


def test_adapter_is_small_and_has_a_trained_head():
    weights = load_file(smollm2.ADAPTER / "adapter_model.safetensors")
    config = json.loads((smollm2.ADAPTER / "adapter_config.json").read_text())
    assert sum(path.stat().st_size for path in smollm2.ADAPTER.iterdir()) <= 8 * MEGABYTE
    assert weights["base_model.model.score.weight"].shape == (1, 576)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert config["task_type"] == "SEQ_CLS"
    assert not config["base_model_name_or_path"].startswith("/")


def test_value_head_fits_the_language_model():
    shapes = {name: tuple(each.shape) for name, each in load_file(smollm2.VALUE_HEAD).items()}
    assert shapes == {"weight": (1, 576), "bias": (1,)}


def test_prompts_are_distinct_and_enough_for_an_interval():
    prompts = smollm2.prompts()
    assert len(set(prompts)) == len(prompts) >= 200
    assert smollm2.prompts(3) == prompts[:3]


def test_figures_hold_every_judge_and_prefix():
    accuracy = json.loads(smollm2.FIGURES.read_text())["accuracy"]
    assert {"reward_model", "value_head"} <= set(accuracy)
    for name in ("4", "8", "16", "32", "end"):
        figure = accuracy["reward_model"]["samples"][name]
        assert figure["interval"][0] <= figure["accuracy"] <= figure["interval"][1]
    # What the pair is for: it has to know a finished answer, and more than chance of a begun one.
    assert accuracy["reward_model"]["samples"]["end"]["interval"][0] > 0.5
    assert accuracy["reward_model"]["samples"]["16"]["interval"][0] > 0.5


def test_written_once_leaves_no_half(tmp_path):
    def fails(folder):
        (folder / "half").write_text("")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        smollm2._written_once(tmp_path / "lm", fails)
    assert list(tmp_path.iterdir()) == []
    written = smollm2._written_once(tmp_path / "lm", lambda folder: (folder / "x").write_text("1"))
    assert smollm2._written_once(written, fails) == written
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2._cache(None) == tmp_path / "args-fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2._cache(None) == Path.home() / ".cache" / "args-fast"
