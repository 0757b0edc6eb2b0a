"""The real pair: what ships, what is said where its packages are missing, what is written once."""

import ast
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from args_fast import smollm2
from args_fast.errors import MissingPackageError

ROOT = Path(__file__).parents[1]
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
    with pytest.raises(MissingPackageError, match=r"needs .*gguf.*pip install.*tiny_pair"):
        smollm2.lm()


def test_package_data_names_every_file():
    setup = ast.parse((ROOT / "setup.py").read_text())
    (patterns,) = (
        ast.literal_eval(value)
        for node in ast.walk(setup)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "args_fast.smollm2"
    )
    folder = smollm2.ADAPTER.parent
    files = {f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    packed = {f for pattern in patterns for f in folder.glob(pattern)}
    assert {f for f in files if f.suffix != ".py"} == {f for f in packed if f.is_file()}


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
