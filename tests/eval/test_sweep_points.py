"""A sweep shares one greedy run, and its pictures show the points."""

import csv
import io

import pytest
from eval_runs import Opener, a_plan, silent
from results_data import GUIDED, RESULTS, method, spread, value

from args_fast.errors import EvaluationError
from args_fast.eval import plots
from args_fast.eval.run import evaluate
from args_fast.eval.sweep import comma_separated, grid, points
from args_fast.eval.tune import Step, point_at


def cell(w, k):
    measures = {**GUIDED, "reward": value(1.0 + w, 0.9 + w, 1.1 + w)}
    times = {"milliseconds_per_token": spread(2.0, 1.9, 2.1), "slowdown": spread(1 + k / 10, 1, 9)}
    return method(f"args-greedy:w={w:g},k={k}", "", measures, options={"w": w, "k": k}, speed=times)


SWEPT = {
    **RESULTS,
    "methods": [RESULTS["methods"][0], *(cell(w, k) for k in (10, 40) for w in (0.5, 1.0, 64.0))],
}


def test_grid_has_greedy_once_and_a_cell_for_each_pair():
    assert [method.key for method in grid([0, 0.5, 2], [10, 40], None)] == [
        "greedy",
        *("args-greedy:w=0.5,k=10", "args-greedy:w=2,k=10"),
        *("args-greedy:w=0.5,k=40", "args-greedy:w=2,k=40"),
    ]
    assert grid([1], [4], 0.7)[1].key == "args-stochastic:w=1,k=4,temperature=0.7"
    assert len(grid([1, 1], [4, 4], None)) == 2


@pytest.mark.parametrize(
    ("weights", "ks", "says"),
    [
        ([0], [10], "at least one w other than 0"),
        ([1], [], "at least one k"),
        ([1], [1], "k = 1 is greedy"),
    ],
)
def test_grid_says_what_is_wrong(weights, ks, says):
    with pytest.raises(EvaluationError, match=says):
        grid(weights, ks, None)


def test_points_share_greedy_as_w_0_of_every_k():
    found = points(SWEPT)
    assert [(p["k"], p["w"]) for p in found] == [
        (k, w) for k in (10, 40) for w in (0.0, 0.5, 1.0, 64.0)
    ]
    assert found[0]["reward"] == found[4]["reward"] == {"mean": 0.7, "low": 0.5, "high": 0.9}
    assert found[1]["reward"]["mean"] == 1.5
    assert found[1]["coherence"] is None
    assert found[1]["judge:gold"]["mean"] == 2.5
    assert (found[1]["slowdown"]["mean"], found[5]["slowdown"]["mean"]) == (2, 5)


def test_csv_has_a_row_for_each_point():
    rows = list(csv.DictReader(io.StringIO(comma_separated(points(SWEPT)))))
    assert len(rows) == 8
    assert (rows[1]["k"], rows[1]["w"], rows[1]["reward"], rows[1]["reward_low"]) == (
        "10",
        "0.5",
        "1.5",
        "1.4",
    )
    assert rows[1]["coherence"] == ""


def test_a_sweep_decodes_greedily_once(tmp_path):
    opener = Opener()
    plan = a_plan("greedy", "args-greedy:w=1,k=3", "args-greedy:w=2,k=3", "args-greedy:w=1,k=5")
    found = points(evaluate(plan, tmp_path, opener, silent))
    assert opener.decoded == 3 * 4
    assert [(p["k"], p["w"]) for p in found] == [(3, 0), (3, 1), (3, 2), (5, 0), (5, 1)]


@pytest.mark.parametrize("draw", [plots.figure2, plots.front, plots.slowdown])
def test_pictures_are_png_and_svg_and_repeat_to_the_letter(tmp_path, draw):
    pytest.importorskip("matplotlib")
    first = [file.read_bytes() for file in draw(points(SWEPT), tmp_path)]
    again = [file.read_bytes() for file in draw(points(SWEPT), tmp_path)]
    assert first[0].startswith(b"\x89PNG")
    assert b"<svg" in first[1]
    assert first == again


def test_figure2_shows_each_k_and_the_greedy_line(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = plots.figure2(points(SWEPT), tmp_path)[1].read_text()
    for label in ("k = 10", "k = 40", "greedy", "average reward", "diversity", "reward by gold"):
        assert f"<!-- {label} -->" in drawn
    assert "<!-- coherence -->" not in drawn


def test_a_wide_range_of_w_has_every_number_at_its_axis(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = plots.figure2(points(SWEPT), tmp_path)[1].read_text()
    assert all(f"<!-- {w} -->" in drawn for w in ("0", "0.5", "1", "64"))


def test_prices_mark_the_chosen_points(tmp_path):
    pytest.importorskip("matplotlib")
    steps = [Step((-0.1, -2.0), (0.0, 1.0)), Step((-0.5, -1.0), (0.0, 2.0))]
    curve = [vars(point_at(steps, w)) for w in (0.1, 0.5, 1.0, 4.0)]
    file = plots.prices(curve, [curve[1]], tmp_path / "w")[1]
    assert "<!--  0.5 -->" in file.read_text()
    assert file == tmp_path / "w.svg"
