"""examples/eval: the programs that the page on the paper's experiments names."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "eval"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_form_rises_with_each_part_of_two_scores_and_knows_nothing_else():
    form = load("two_scores").form
    steps = ["", "7", "7 ", "7 5"]
    assert form([""] * 4, steps) == [0.0, 1.0, 2.0, 3.0]
    others = [" 7", "0", "10", "7  ", "7 5 ", "7 5\n", "seven"]
    assert set(form([""] * len(others), others)) == {-1.0}


@pytest.fixture
def run(tmp_path):
    rewards = {"greedy": [1.0, 1.0, 1.0, 1.0], "args-greedy:w=1": [2.0, 3.0, 1.0, 0.0]}
    texts = {"greedy": "a b a b a b", "args-greedy:w=1": "a b c d e f"}
    scores, samples = [], []
    for method, values in rewards.items():
        for index, value in enumerate(values):
            own = {"method": method, "index": index}
            scores += [{"measure": name, **own, "value": value} for name in ("reward", "surprise")]
            scores.append({"measure": "judge:some/folder/gold", **own, "value": -value})
            samples.append({**own, "response": texts[method]})
    for name, records in (("scores", scores), ("samples", samples)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


def test_wins_compares_every_measure_prompt_by_prompt(run, capsys):
    pytest.importorskip("statsmodels")
    wins = load("wins")
    wins.main(run, "greedy")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| reward", "| gold", "| diversity"]
    assert rows[0][2:6] == ["4", "50%", "25%", "25%"]
    assert rows[0][7].startswith("+0.500 (")
    assert rows[1][3:6] == ["25%", "25%", "50%"]
    assert rows[2][3:6] == ["100%", "0%", "0%"]
    wins.main(run, "args")
    assert "| reward | greedy | 4 | 25% | 25% | 50% |" in capsys.readouterr().out
