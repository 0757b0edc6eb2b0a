"""``args-fast sweep``: ARGS over w and k, as numbers and pictures."""

import csv
from pathlib import Path

import pytest

from args_fast.eval import intervals, speed

SHORT = ("--limit", 2, "--max-new-tokens", 5, "--device", "cpu", "--timing-prompts", 1)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intervals, "RESAMPLES", 99)


def test_a_sweep_gives_numbers_and_pictures(cli, tmp_path, monkeypatch):
    # A few tokens of a toy may seem to take no time where others use the cores.
    timed = speed._seconds
    monkeypatch.setattr(speed, "_seconds", lambda *args: timed(*args) + args[-1])
    result = cli("sweep", *SHORT, "--w", "0.5,8", "--k", "2,3")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "sweep-results"
    kept = {file.name for file in folder.iterdir()}
    for name in ("figure2", "front", "slowdown"):
        assert {f"{name}.png", f"{name}.svg"} <= kept
        assert f"{name}.png" in result.stderr
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [(row["k"], row["w"]) for row in rows] == [
        (k, w) for k in ("2", "3") for w in ("0.0", "0.5", "8.0")
    ]
    assert "perplexity" in result.stdout


def test_a_yaml_file_holds_lists_of_numbers(cli_json, tmp_path):
    (tmp_path / "s.yaml").write_text("w: [0, 1]\nk: [2]\ntiming_prompts: 0\n")
    found = cli_json("sweep", *SHORT[:6], "--config", "s.yaml", "--out", "run")
    assert [(point["k"], point["w"]) for point in found] == [(2, 0.0), (2, 1.0)]
    assert found[0]["slowdown"] is None
    assert not (tmp_path / "run/slowdown.png").exists()


def test_figure_2_runs_on_the_embedded_pair(cli_json):
    file = Path(__file__).parents[2] / "examples/eval/figure2.yaml"
    found = cli_json("sweep", "--config", file, *SHORT[:6], "--limit", 1, "--timing-prompts", 0)
    assert {point["k"] for point in found} == {10, 40}
    assert {point["w"] for point in found} == {0, 0.5, 1, 1.5, 2, 4}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--w", "one"), "w is 'one'; it must be numbers separated by commas"),
        (("--k", "2.5"), "k is '2.5'; it must be numbers separated by commas"),
        (("--w", "0"), "at least one w other than 0"),
        (("--k", "1,2"), "k = 1 is greedy decoding"),
        (("--k", "200"), "k is 200; it must be a whole number from 1 to 128"),
    ],
)
def test_what_is_wrong_is_one_line(cli, options, says):
    result = cli("sweep", *SHORT, *options)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


def test_help_shows_an_example(cli):
    shown = " ".join(cli("sweep", "--help").stdout.replace("│", " ").split())
    assert "args-fast sweep --w 0.5,1,1.5,2,4 --k 10" in shown
    for option in ("--limit", "--seed", "--json"):
        assert option in shown
