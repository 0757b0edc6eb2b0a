"""``args-fast explain``: one page, and what it says about it."""

import json

import pytest

QUESTION = "\n\nHuman: How do I grow mint?\n\nAssistant:"
SHORT = ("--max-new-tokens", 4, "--k", 3, "--device", "cpu")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_page_is_written_and_summed_up(cli, tmp_path):
    result = cli("explain", QUESTION, *SHORT)
    assert result.exit_code == 0, result.stderr
    shown = (tmp_path / "explain.html").read_text()
    assert "How do I grow mint?" in shown
    assert shown.startswith("<!doctype html>")
    assert "explain.html: greedy 4 tokens, 0 not the likeliest" in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_json_holds_the_steps(cli_json):
    found = cli_json("explain", QUESTION, *SHORT, "--no-compare", "--w", 2)
    (decode,) = found["decodes"]
    assert len(decode["steps"]) == 4
    assert len(decode["steps"][0]["candidates"]) == 3
    assert found["config"]["w"] == 2
    assert set(found["models"]) == {"lm", "rm"}


def test_a_prompt_comes_as_it_is_and_with_chat_as_a_message(cli_json):
    assert cli_json("explain", "Mint?", *SHORT)["prompt"] == "Mint?"
    assert cli_json("explain", "--chat", "Mint?", *SHORT)["prompt"].startswith("\n\nHuman: Mint?")


def test_data_gives_a_page_for_each_prompt(cli, tmp_path):
    (tmp_path / "prompts.txt").write_text("One?\nTwo?\nThree?\n")
    options = ("--data", "text:prompts.txt", "--limit", 2, "--out", "pages", "--json")
    result = cli("explain", *SHORT, *options)
    assert result.exit_code == 0, result.stderr
    assert sorted(file.name for file in (tmp_path / "pages").iterdir()) == ["0.html", "1.html"]
    prompts = [json.loads(line)["prompt"] for line in result.stdout.splitlines()]
    assert set(prompts) < {"One?", "Two?", "Three?"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("Mint?", "--data", "text:none.txt"), "give a prompt or --data, not both"),
        (("--data", "text:none.txt"), "cannot read none.txt"),
        (("Mint?", "--temperature", "-1"), "temperature is -1"),
        (("Mint?", "--out", "no/such/folder/x.html"), "no/such/folder"),
    ],
)
def test_what_is_wrong_is_one_line(cli, arguments, says):
    result = cli("explain", *arguments, *SHORT)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_help_shows_an_example(cli):
    shown = " ".join(cli("explain", "--help").stdout.replace("│", " ").split())
    assert 'args-fast explain --chat "How do I teach my spaniel to sit?"' in shown
    for option in ("--limit", "--seed", "--json", "--compare", "--out"):
        assert option in shown
