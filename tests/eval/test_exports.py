"""Responses in the formats of AlpacaEval and RewardBench."""

import json

import pytest
from eval_runs import Opener, a_plan, samples, silent

from args_fast.eval.exports import export, file_name
from args_fast.eval.methods import parse
from args_fast.eval.run import evaluate


@pytest.fixture(scope="module", params=[None, True], ids=["text", "chat"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    plan = a_plan("greedy", "args-greedy:name=ARGS (w/ 1.5)", chat=request.param)
    evaluate(plan, folder, Opener(), silent)
    return plan, folder


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_alpaca_eval_has_instruction_output_and_generator(run):
    plan, folder = run
    files = export(plan, folder, "alpaca_eval")
    assert [file.name for file in files] == ["greedy.json", "ARGS-w-1.5.json"]
    rows = json.loads(files[1].read_text())
    kept = samples(folder)
    assert len(rows) == 3
    for index, row in enumerate(rows):
        assert row["output"] == kept[plan.methods[1].key, index]["response"]
        assert row["generator"] == "ARGS (w/ 1.5)"
        assert "Human" in row["instruction"] or plan.settings.chat


def test_rewardbench_has_conversations_and_preferences(run):
    plan, folder = run
    files = {file.name: lines(file) for file in export(plan, folder, "rewardbench")}
    assert set(files) == {"greedy.jsonl", "ARGS-w-1.5.jsonl", "ARGS-w-1.5-over-greedy.jsonl"}
    for row in files["greedy.jsonl"]:
        assert [turn["role"] for turn in row["messages"]][-2:] == ["user", "assistant"]
    kept = samples(folder)
    for index, row in enumerate(files["ARGS-w-1.5-over-greedy.jsonl"]):
        assert row["chosen"] == kept[plan.methods[1].key, index]["response"]
        assert row["rejected"] == kept["greedy", index]["response"]
        assert isinstance(row["prompt"], str)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("greedy", "greedy"),
        ("top-k", "top-k-k=40-temperature=0.7"),
        ("policy:path=../out/dpo", "policy-path=..-out-dpo"),
        ("greedy:name=../../etc/x y", "..-..-etc-x-y"),
    ],
)
def test_file_name_stays_in_its_folder(written, expected):
    assert file_name(parse(written)) == expected
