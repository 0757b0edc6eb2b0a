"""``args-fast eval``: methods on prompts, as a table and as files."""

import json
from pathlib import Path

import pytest

from args_fast.cli import evaluation
from args_fast.eval import intervals
from args_fast.tiny_pair import HELDOUT, LM, RM

EXAMPLES = Path(__file__).parents[2] / "examples/eval"
SHORT = ("--limit", 3, "--max-new-tokens", 6, "--timing-prompts", 0, "--device", "cpu")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intervals, "RESAMPLES", 99)


def test_without_options_it_runs_the_embedded_pair(cli, tmp_path):
    result = cli("eval", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert "using the embedded tiny pair" in result.stderr
    assert "using up to 3 of the embedded pair's held-out prompts" in result.stderr
    for word in ("greedy", "args-greedy", "args-stochastic", "reward", "perplexity"):
        assert word in result.stdout
    kept = {file.name for file in (tmp_path / "eval-results").iterdir()}
    assert kept == {
        *("settings.json", "prompts.json", "samples.jsonl", "scores.jsonl", "results.json"),
        *("table.md", "table.csv", "table.html"),
    }


def test_json_is_what_the_folder_holds(cli_json, tmp_path):
    found = cli_json("eval", *SHORT, "--method", "greedy", "--out", "run")
    assert found == json.loads((tmp_path / "run/results.json").read_text())
    assert [method["method"] for method in found["methods"]] == ["greedy"]
    assert found["settings"]["seed"] == 0


def test_a_yaml_file_holds_the_options_and_the_command_line_overrides_it(cli_json, tmp_path):
    (tmp_path / "judges.py").write_text("def size(p, r):\n    return [len(x) for x in r]\n")
    (tmp_path / "run.yaml").write_text(
        f"""
        lm: {LM}
        rm: {RM}
        data: hh:{HELDOUT}
        limit: 2
        max-new-tokens: 5
        timing_prompts: 0
        methods: [greedy, {{args-greedy: {{w: 1, k: 3, name: mine}}}}]
        judge_rewards: {{size: judges.py:size}}
        out: run
        """
    )
    found = cli_json("eval", "--config", "run.yaml", "--max-new-tokens", 6)
    assert [method["label"] for method in found["methods"]] == ["greedy", "mine"]
    assert found["settings"]["max_new_tokens"] == 6
    assert found["prompts"]["count"] == 2
    assert found["judges"] == {"size": "judges.py:size"}
    assert found["methods"][0]["measures"]["judge:size"]["mean"] > 0


@pytest.mark.parametrize(
    ("table", "methods"), [("table2", 2), ("table3", 3), ("table10", 7), ("figure3", 2)]
)
def test_the_papers_tables_run_on_the_embedded_pair(cli_json, table, methods):
    found = cli_json("eval", "--config", EXAMPLES / f"{table}.yaml", *SHORT[:6], "--limit", 1)
    assert len({method["label"] for method in found["methods"]}) == methods
    assert all(method["answered"] == 1 for method in found["methods"])


def test_table_4_asks_for_its_policies(cli):
    result = cli("eval", "--config", EXAMPLES / "table4.yaml", *SHORT)
    assert result.exit_code == 2
    assert "there is no folder ./runs/ppo" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("limits: 3", "has 'limits'; its options are cache_bytes, chat, "),
        ("max_batch_size: many", "max_batch_size in run.yaml is 'many'; it must be a whole number"),
        ("limit: 0", "limit is 0; it must be at least 1"),
        ("chat: 3", "chat in run.yaml is 3; it must be true or false"),
        ("- greedy", "must hold options, such as 'limit: 100'"),
        ("a: [", "cannot read run.yaml"),
        ("methods: [beam]", "the method is 'beam'; it must be one of greedy"),
        ("limit: three", "limit in run.yaml is 'three'; it must be a whole number"),
        ("methods: greedy", "methods in run.yaml is 'greedy'; it must be a list"),
    ],
)
def test_a_yaml_file_that_is_wrong_is_one_line(cli, tmp_path, yaml, says):
    (tmp_path / "run.yaml").write_text(yaml)
    result = cli("eval", "--config", "run.yaml")
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert result.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "beam"), "the method is 'beam'"),
        (("--method", "greedy", "--method", "greedy"), "the method greedy is named twice"),
        (("--data", "books"), "data is 'books'; it must be one of hh"),
        (("--data", "text:none.txt"), "cannot read none.txt"),
        (("--export", "csv"), "export is 'csv'; it must be one of alpaca_eval, rewardbench"),
        (("--config", "none.yaml"), "cannot read none.yaml"),
        (("--lm", str(LM)), "--lm is given without --rm"),
        (("--max-prompt-tokens", 2), "prompts are longer than 2 tokens"),
        (("--method", "args-greedy:k=500"), "k is 500; it must be a whole number from 1 to 128"),
        (("--judge-reward", "none.py:judge"), "the judge none.py:judge cannot be imported"),
        (("--encoder", "none/none/none"), "cannot load the encoder none/none/none"),
    ],
)
def test_what_is_wrong_is_one_line(cli, options, says):
    result = cli("eval", *SHORT, *options)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_finished_run_loads_nothing_and_restart_replaces_it(cli, monkeypatch):
    cli("eval", *SHORT, "--method", "greedy")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "load_pair", None)
        assert cli("eval", *SHORT, "--method", "greedy").exit_code == 0
    other = cli("eval", *SHORT, "--method", "greedy", "--seed", 1)
    assert other.exit_code == 2
    assert "holds a run with seed = 0, and now it is 1" in " ".join(other.stderr.split())
    assert cli("eval", *SHORT, "--method", "greedy", "--seed", 1, "--restart").exit_code == 0


def test_exports_are_written_and_named(cli, tmp_path):
    options = ("--export", "alpaca_eval", "--export", "rewardbench", "--out", "run")
    result = cli(
        "eval", *SHORT, "--method", "greedy", "--method", "args-greedy:name=ARGS", *options
    )
    assert result.exit_code == 0, result.stderr
    for name in ("alpaca_eval/ARGS.json", "rewardbench/ARGS-over-greedy.jsonl"):
        assert name in result.stderr
        assert (tmp_path / "run" / name).is_file()


def test_help_shows_an_example(cli):
    shown = " ".join(cli("eval", "--help").stdout.replace("│", " ").split())
    assert "args-fast eval --method greedy --method top-k" in shown
    for option in ("--limit", "--seed", "--json", "--judge-reward", "--config", "--export"):
        assert option in shown
