"""Every script of examples/ runs as it stands, is short, and does not need the command line."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = [
    "quickstart",
    "own_models",
    "many_users",
    "reward_from_function",
    "several_rewards",
    "openai_client",
    "prove_it",
    "quantized_weights",
    "huggingface/generate",
]
NEEDS_A_SERVER = {"openai_client"}
SAYS = {
    "quickstart": "ARGS   (",
    "own_models": "w = 5.0:",
    "many_users": "Suggest a short walk.",
    "reward_from_function": "w = 2.0:",
    "several_rewards": "'brief': 3.0",
    "prove_it": "32 equal tokens",
    "quantized_weights": "lm None, rm None: 7.7 MB of weights, 100.0% equal choices",
    "huggingface/generate": "'role': 'assistant'",
}


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in NEEDS_A_SERVER])
def test_script_runs_as_it_stands(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_short_and_uses_the_public_api(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 40
    assert f"examples/{name}.py" in ast.get_docstring(ast.parse(text))
    assert "args_fast.cli" not in text
