"""The demo, where the real pair is not installed: it says so and shows the tiny one."""

import importlib.util
from pathlib import Path

import pytest

from args_fast import smollm2
from args_fast.errors import MissingPackageError

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo(monkeypatch):
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TINY_QUESTIONS", module.TINY_QUESTIONS[:1])
    return module


@pytest.mark.parametrize("error", [MissingPackageError("no gguf"), OSError("disk full")])
def test_demo_falls_back_to_the_tiny_pair_and_says_why(demo, monkeypatch, capsys, error):
    def fails():
        raise error

    monkeypatch.setattr(smollm2, "check_installed", fails)
    demo.main(tiny=False)
    shown = capsys.readouterr()
    assert f"stands in for the real one: {error}" in " ".join(shown.err.split())
    assert "How can I clean the sofa" in shown.out
    assert "greedy" in shown.out
    assert "ARGS k=10 w=1.5" in shown.out
