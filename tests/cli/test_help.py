"""The help teaches, and comes at once."""

import subprocess
import sys

import pytest

import args_fast


def words(result):
    """Its words, without the boxes and line breaks that depend on the terminal's width."""
    assert result.exit_code == 0
    return " ".join(result.stdout.replace("│", " ").split())


def test_help_lists_the_commands_and_something_to_try(cli):
    shown = words(cli("--help"))
    for command in ("generate", "batch", "doctor"):
        assert command in shown
    assert 'args-fast generate --chat "How do I teach my spaniel to sit?"' in shown


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_generate_explains_its_options_and_shows_examples(cli, option):
    shown = words(cli("generate", option))
    for option in (
        *("--lm", "--rm", "--k", "--w", "--temperature", "--seed", "--max-new-tokens", "--stop"),
        *(
            "--dtype",
            "--device",
            "--compare-greedy",
            "--json",
            "--chat",
            "--eos",
            "--trust-remote-code",
        ),
        *("--compile", "--rm-device", "--max-batch-size", "--cache-bytes", "--logits-processor"),
        "--draft",
    ):
        assert option in shown
    for lesson in ("1<=x<=128", "[default: 10]", "0 leaves the reward model out"):
        assert lesson in shown
    assert 'args-fast generate --chat "How do I teach my spaniel to sit?" --compare-greedy' in shown
    assert "< prompt.txt" in shown


def test_doctor_shows_an_example(cli):
    assert "ARGS_FAST_BACKEND=torch args-fast doctor" in words(cli("doctor", "--help"))


def test_version(cli):
    assert words(cli("--version")) == f"args-fast {args_fast.__version__}"


def test_without_a_command_the_help_is_shown(cli):
    shown = cli()
    assert "generate" in shown.output


def test_help_waits_for_neither_torch_nor_transformers():
    slow = "import sys, args_fast.cli; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", slow], capture_output=True, text=True)
    assert result.stdout == "set()\n"
