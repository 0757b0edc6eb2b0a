"""``args-fast chat`` through a pipe, and in a terminal."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest

from args_fast import DecodingConfig

OPTIONS = ["--max-new-tokens", "8", "--k", "4", "--w", "2"]
CONFIG = DecodingConfig(k=4, w=2, max_new_tokens=8, return_candidates=True)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_a_conversation_grows(cli, pair):
    result = cli("chat", *OPTIONS, piped="Hello\n\nWhy?\n")
    assert result.exit_code == 0, result.stderr
    first = pair.chat([user("Hello")], CONFIG)
    second = pair.chat([user("Hello"), assistant(first.text), user("Why?")], CONFIG)
    assert result.stdout == f"{first.text}\n{second.text}\n"


def test_candidates_show_log_probability_reward_and_score(cli, pair):
    result = cli("chat", *OPTIONS, piped="Hello\n/candidates\n/candidates 2\n/c 99\n")
    expected = pair.chat("Hello", CONFIG)
    shown = result.stdout.partition(expected.text + "\n")[2].splitlines()
    steps = len(expected.token_ids)
    assert sum(line.startswith("step ") for line in shown) == steps + 1
    assert sum(line.strip().startswith(">") for line in shown) == steps + 1
    rows = [line for line in shown if not line.startswith("step ")]
    numbers = [[float(x) for x in row.split()[-3:]] for row in rows[: 4 * steps]]
    candidates = [c for step in expected.candidates for c in step]
    for row, c in zip(numbers, candidates, strict=True):
        assert row == pytest.approx([c.logprob, c.reward, c.score], abs=2e-3)
    assert f"no step 99; the last answer has {steps}" in result.stderr


def test_commands(cli, pair):
    lines = ["/candidates", "Hello", "/reset", "/set w 0", "Why?", "/set w much", "/set x 1"]
    result = cli("chat", *OPTIONS, piped="\n".join([*lines, "/nonsense", "/help", "/quit", "No"]))
    assert result.exit_code == 0
    guided = pair.chat("Hello", CONFIG)
    plain = pair.chat("Why?", DecodingConfig(k=4, w=0, max_new_tokens=8))
    assert result.stdout.startswith(f"{guided.text}\n{plain.text}\n/candidates [STEP]")
    for words in (
        "no answer to show yet",
        "the conversation is forgotten",
        "w is 0",
        "w is 'much'; it must be a finite number",
        "/set takes one of w, k",
        "/nonsense is not a command",
    ):
        assert words in " ".join(result.stderr.split())


def test_an_error_leaves_the_conversation_as_it_was(cli, pair):
    lines = ["Hello", "/set max_new_tokens 100000", "Why?", "/set max_new_tokens 8", "Why?"]
    result = cli("chat", *OPTIONS, piped="\n".join(lines))
    first = pair.chat("Hello", CONFIG)
    second = pair.chat([user("Hello"), assistant(first.text), user("Why?")], CONFIG)
    assert result.stdout == f"{first.text}\n{second.text}\n"
    assert "error:" in result.stderr


def test_json_is_an_object_a_line(cli, pair):
    result = cli("chat", *OPTIONS, "--json", "--system", "Be brief.", piped="Hello\nWhy?\n")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    system = {"role": "system", "content": "Be brief."}
    expected = pair.chat([system, user("Hello")], CONFIG)
    assert first["token_ids"] == expected.token_ids
    talk = [system, user("Hello"), assistant(expected.text), user("Why?")]
    assert second["token_ids"] == pair.chat(talk, CONFIG).token_ids
    assert len(first["candidates"]) == len(first["token_ids"])


def test_in_a_terminal_there_is_a_prompt(pair):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "args_fast", "chat", *OPTIONS]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = _until(ours, "> ")
        os.write(ours, b"Hello\n")
        shown += _until(ours, "> ")
        os.write(ours, b"\x04")
        assert process.wait(120) == 0
    assert "Ctrl-D leaves" in shown
    expected = pair.chat("Hello", CONFIG).text
    assert " ".join(expected.split()) in " ".join(shown.split())


def _until(terminal, words):
    shown, deadline = "", time.monotonic() + 240
    while not shown.endswith(words):
        assert time.monotonic() < deadline, shown
        shown += os.read(terminal, 1000).decode(errors="replace")
    return shown
