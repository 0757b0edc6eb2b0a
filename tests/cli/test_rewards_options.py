"""Rewards on the command line: what the options say, as data, and what they may not say."""

import json
import sys

import pytest

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.cli import rewards
from args_fast.tiny_pair import LM, RM

EXAMPLE = "def shortness(prompts, responses):\n    return [-len(r) / 10 for r in responses]\n"


@pytest.fixture
def function(tmp_path, monkeypatch):
    (tmp_path / "brevity.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    return "brevity:shortness"


@pytest.mark.parametrize(
    ("values", "specs"),
    [
        ({}, None),
        ({"rm": ["org/rm"]}, "org/rm"),
        ({"rm": "org/rm"}, "org/rm"),  # as a file of options may have it
        ({"rm": ["helpful=org/rm"]}, {"helpful": {"path": "org/rm"}}),
        ({"rm": ["org/a", "b=org/b"]}, {"a": {"path": "org/a"}, "b": {"path": "org/b"}}),
        (
            {"rm": ["a=org/a", "b=org/b"], "weights": "a=0.7,b=-3"},
            {"a": {"path": "org/a", "weight": 0.7}, "b": {"path": "org/b", "weight": -3.0}},
        ),
        (
            {"rm": ["org/a", "org/b"], "rm_template": ["chat", "b=plain"], "rm_closing": ["a=4,5"]},
            {
                "a": {"path": "org/a", "template": "chat", "closing_ids": [4, 5]},
                "b": {"path": "org/b", "template": "plain"},
            },
        ),
        ({"rm": ["org/a"], "rm_labels": ["1"]}, {"a": {"path": "org/a", "labels": 1}}),
        (
            {"rm": ["org/a"], "rm_labels": ["good:1,1:-0.5"]},
            {"a": {"path": "org/a", "labels": {"good": 1.0, "1": -0.5}}},
        ),
        ({"reward_function": ["m:f.g"]}, {"f.g": {"function": "m:f.g"}}),
        (
            {"rm": ["org/a"], "reward_function": ["mine=m:f"], "rm_template": ["plain"]},
            {"a": {"path": "org/a", "template": "plain"}, "mine": {"function": "m:f"}},
        ),
    ],
)
def test_what_the_options_say(values, specs):
    text = rewards.written(values)
    assert (json.loads(text) if isinstance(specs, dict) else text) == specs


@pytest.mark.parametrize("lm", [["--lm", LM], []], ids=["given", "embedded"])
def test_a_function_may_lie_in_this_folder(cli, tmp_path, monkeypatch, lm):
    (tmp_path / "nearby.py").write_text(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = [*lm, "--reward-function", "nearby:shortness", "--max-new-tokens", "2"]
    result = cli("generate", "Hi", *options)
    assert result.exit_code == 0, result.stderr
    assert ("no --lm given: using the embedded one" in result.stderr) == (not lm)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rm", "a=x", "--rm", "a=y"], "two rewards have the name 'a'"),
        (["--rm", "a=x", "--weights", "b=1"], "--weights names 'b'; the rewards are a"),
        (["--rm", "a=x", "--weights", "a"], "helpful=0.7"),
        (["--rm", "a=x", "--weights", "a=much"], "helpful=0.7"),
        (["--rm", "a=x", "--rm-template", "jinja"], "auto, chat, plain, pair"),
        (["--rm", "a=x", "--rm-template", "b=chat"], "--rm-template names 'b'"),
        (["--rm", "a=x", "--rm-closing", "four"], "token ids"),
        (["--rm", "a=x", "--rm-labels", "good:much"], "POSITIVE:1"),
        (["--rm-template", "chat"], "--rm-template is given without --rm"),
        (["--lm", LM, "--reward-function", "brevity"], "module:name"),
        (["--lm", LM, "--reward-function", "no_such_module:f"], "cannot be imported"),
        (["--lm", LM, "--rm", f"a={RM}", "--rm-labels", "7"], "outputs 0 to 0"),
        (["--lm", LM, "--rm", "a=/no/such/folder"], "/no/such/folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(cli, arguments, words):
    result = cli("generate", "Hi", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_generate_is_guided_by_a_mixture(cli_json, function):
    arguments = ["--max-new-tokens", "6", "--k", "5", "--w", "2"]
    rm = ["--rm", f"model={RM}", "--reward-function", f"short={function}"]
    record = cli_json(
        "generate", "Hello", "--lm", LM, *rm, "--weights", "model=0.5,short=2", *arguments
    )
    specs = {"model": {"path": RM, "weight": 0.5}, "short": {"function": function, "weight": 2}}
    decoder = ArgsDecoder.from_pretrained(LM, specs, device="cpu")
    (expected,) = decoder.generate("Hello", DecodingConfig(k=5, w=2, max_new_tokens=6))
    assert record["token_ids"] == expected.token_ids
    assert sorted(record["rewards_by_name"]) == ["model", "short"]


def test_batch_lines_choose_their_rewards(cli, function, tmp_path):
    lines = [
        {"prompt": "Hello", "max_new_tokens": 4},
        {"prompt": "Hello", "max_new_tokens": 4, "reward": "short"},
        {"prompt": "Hello", "max_new_tokens": 4, "reward": {"short": 2, "model": -1}},
        {"prompt": "Hello", "max_new_tokens": 4, "reward": "kind"},
        {"prompt": "Hello", "max_new_tokens": 4, "every": 2},
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rm = ["--rm", f"model={RM}", "--reward-function", f"short={function}"]
    result = cli("batch", source, out, "--lm", LM, *rm)
    assert result.exit_code == 1, result.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert "reward names 'kind'" in records[3]["error"]["message"]
    specs = {"model": {"path": RM}, "short": {"function": function}}
    decoder = ArgsDecoder.from_pretrained(LM, specs, device="cpu")
    for line, record in zip(lines, records, strict=True):
        if "error" not in record:
            options = {k: v for k, v in line.items() if k != "prompt"}
            (expected,) = decoder.generate("Hello", DecodingConfig(**options))
            assert record["token_ids"] == expected.token_ids
    # The same command resumes, and another mixture is another job.
    assert cli("batch", source, out, "--lm", LM, *rm).exit_code == 1
    other = cli("batch", source, out, "--lm", LM, *rm, "--weights", "short=3")
    assert other.exit_code == 2
    assert "rm" in other.stderr
