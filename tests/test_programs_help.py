"""Every program of bench/, examples/ and scripts/ says what it does when it is asked for --help."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = ("chitchat_dataset", "datasets", "httpx", "openai", "peft", "sentence_transformers")
OPTIONAL += ("sklearn", "trl", "vaderSentiment")


def programs():
    """Files that are run: they have a main part, or name themselves as what python runs."""
    for folder in ("bench", "examples", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text, name = path.read_text(), str(path.relative_to(ROOT))
            if 'if __name__ == "__main__"' in text or f"python {name}" in text:
                yield name


@pytest.mark.parametrize("name", programs())
def test_help_says_what_a_program_does_and_starts_nothing(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "path", [str((ROOT / name).parent), *sys.path])
    with pytest.raises((SystemExit, ModuleNotFoundError)) as ended:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    if isinstance(ended.value, ModuleNotFoundError):
        assert ended.value.name.partition(".")[0] in OPTIONAL
        pytest.skip(f"needs {ended.value.name}")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    purpose = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert " ".join(purpose.split())[:60] in shown.replace("- ", "-")
