"""``args-fast judge``: two methods side by side, judged by a server on this machine."""

import json

import pytest
from chat_server import served

from args_fast.eval import intervals
from args_fast.eval.records import Records, write_json


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intervals, "RESAMPLES", 99)


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two methods on four prompts."""
    folder = tmp_path / "run"
    folder.mkdir()
    prompts = [{"id": str(i), "prompt": f"Question {i}?"} for i in range(4)]
    write_json(folder / "prompts.json", {"skipped": 0, "prompts": prompts})
    with Records(folder / "samples.jsonl", ("method", "index")) as records:
        for method in ("greedy", "args-greedy:w=1,k=10"):
            records.append(
                {"method": method, "index": i, "response": f"{method} {i}"} for i in range(4)
            )
    return folder


def longest(body, number):
    """A judge that prefers ARGS' answers by their name."""
    first = body["messages"][-1]["content"].partition("1's answer]\n")[2]
    return "9 3\nso" if first.startswith("args") else "3 9\nso"


def test_win_tie_lose_with_intervals_and_cost(cli, run):
    with served(longest) as (url, server):
        result = cli("judge", run, "--endpoint", url, "--model", "m", "--price", 10, 30)
        assert result.exit_code == 0, result.stderr
        assert "args-greedy:w=1,k=10 against greedy, judged by m:" in result.stdout
        assert "win         100.0% [51.0%, 100.0%]" in result.stdout
        assert "mean scores 9.00 and 3.00" in result.stdout
        words = " ".join(result.stderr.split())
        assert "spent: 4 requests, 400 prompt tokens and 40 completion tokens, 0.01" in words
        again = cli("judge", run, "--endpoint", url, "--model", "m")
        assert again.stdout == result.stdout
        assert len(server.requests) == 4


def test_both_orders_report_their_agreement(cli_json, run):
    with served(lambda body, number: "8 6") as (url, server):
        found = cli_json("judge", run, "--endpoint", url, "--model", "m", "--both-orders")
    assert len(server.requests) == 8
    assert found["agreement"]["share"] == 0
    assert found["tie"]["count"] == 4


def test_limit_and_seed(cli_json, run):
    with served(longest) as (url, server):
        found = cli_json("judge", run, "--endpoint", url, "--model", "m", "--limit", 2, "--seed", 5)
    assert (found["pairs"], found["seed"], len(server.requests)) == (2, 5, 2)


def test_a_dry_run_sends_nothing(cli, cli_json, run):
    result = cli("judge", run, "--dry-run")
    assert "[Assistant 1's answer]" in result.stdout
    assert "4 requests like this one" in result.stderr
    found = cli_json("judge", run, "--dry-run", "--both-orders")
    assert found["requests"] == 8
    assert found["first"][0]["role"] == "system"


def test_without_a_run_the_embedded_pair_decodes_one(cli_json, tmp_path):
    with served(lambda body, number: "7 7") as (url, _):
        found = cli_json("judge", "--endpoint", url, "--model", "m", "--limit", 1)
    assert (found["pairs"], found["tie"]["count"]) == (1, 1)
    kept = (tmp_path / "judge-results/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in kept] == ["greedy", "args-greedy:w=1.5,k=10"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "name the judge: --endpoint https://HOST/v1 --model NAME"),
        (("--endpoint", "ftp://x", "--model", "m"), "must be a URL such as https://host/v1"),
        (("--dry-run", "--method", "top-k"), "the method is 'top-k'; the run has greedy"),
    ],
)
def test_what_is_wrong_is_one_line(cli, run, options, says):
    result = cli("judge", run, *options)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


def test_a_folder_that_is_not_a_run_is_named(cli, tmp_path):
    result = cli("judge", tmp_path, "--dry-run")
    assert result.exit_code == 2
    assert "is not the folder of a run" in " ".join(result.stderr.split())


def test_a_server_that_refuses_is_one_line(cli, run):
    with served(lambda body, number: 401) as (url, _):
        result = cli("judge", run, "--endpoint", url, "--model", "m", "--key-env", "NO_SUCH_KEY")
    assert result.exit_code == 2
    assert "answered HTTP 401" in result.stderr
    assert "set NO_SUCH_KEY" in " ".join(result.stderr.split())


def test_help_shows_an_example(cli):
    shown = " ".join(cli("judge", "--help").stdout.replace("│", " ").split())
    assert "args-fast judge eval-results --endpoint https://HOST/v1 --model NAME" in shown
    for option in ("--limit", "--seed", "--json", "--both-orders", "--per-minute", "--price"):
        assert option in shown
