"""``args-fast tune``: a range of w, and the command that measures it."""

import pytest

SHORT = ("--limit", 2, "--max-new-tokens", 10, "--device", "cpu")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_range_is_suggested_with_the_sweep_that_measures_it(cli):
    result = cli("tune", *SHORT, "--k", 5)
    assert result.exit_code == 0, result.stderr
    for word in ("steps of 2 prompts, k = 5", "spread of rewards", "low", "start", "high"):
        assert word in result.stdout
    assert "args-fast sweep --w " in result.stderr
    assert "--k 5" in result.stderr


def test_json_holds_the_points_and_the_curve(cli_json):
    found = cli_json("tune", *SHORT)
    assert found["low"]["w"] < found["start"]["w"] < found["high"]["w"]
    assert found["start"]["price"] <= 1.1
    prices = [point["price"] for point in found["curve"]]
    assert prices == sorted(prices)
    assert (found["prompts"], found["k"]) == (2, 10)


def test_plot_draws_the_curve(cli, tmp_path):
    result = cli("tune", *SHORT, "--plot", "w")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "w.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "w.svg").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--k", 1), "k is 1; a choice needs at least 2 candidates"),
        (("--data", "text:none.txt"), "cannot read none.txt"),
    ],
)
def test_what_is_wrong_is_one_line(cli, options, says):
    result = cli("tune", *SHORT, *options)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


def test_help_shows_an_example(cli):
    shown = " ".join(cli("tune", "--help").stdout.replace("│", " ").split())
    assert "args-fast tune --lm org/lm --rm org/rm --data hh --limit 10" in shown
    for option in ("--limit", "--seed", "--json", "--plot"):
        assert option in shown
