"""Tables hold the results, in every form, and escape what is not theirs."""

import csv
import io

import pytest
from results_data import RESULTS

from args_fast.eval.table import cells, comma_separated, markdown, notes, page


def test_markdown_has_a_row_for_each_method_and_a_column_for_each_measure():
    lines = markdown(RESULTS).splitlines()
    titles = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert titles == [
        *("method", "reward", "Δ reward", "reward by gold", "Δ reward by gold", "diversity"),
        *("perplexity", "tokens", "compression", "ms/token", "slowdown", "rows LM + RM"),
    ]
    assert [len(line.replace("\\|", "").strip("|").split("|")) for line in lines[:4]] == [12] * 4
    guided = [cell.strip() for cell in lines[3].replace("\\|", "/").strip("|").split("|")]
    assert guided[:3] == ["<b>/ARGS", "+1.200 [+1.000, +1.500]", "+0.500 [+0.300, +0.700]"]
    assert guided[-3:] == ["2.0 [1.9, 2.1]", "2.10 [2.00, 2.20]", "1 + 10"]


def test_a_measure_that_no_method_has_is_no_column():
    titles, _ = cells(RESULTS)
    assert "coherence" not in titles


def test_what_was_not_measured_is_a_dash():
    _, rows = cells(RESULTS)
    assert rows[2][1] == ("-", "")
    assert rows[2][-3] == ("-", "")


def test_csv_holds_the_numbers_as_they_are():
    rows = list(csv.DictReader(io.StringIO(comma_separated(RESULTS))))
    (reward,) = (
        r for r in rows if (r["method"], r["measure"]) == ("args-greedy:w=1.5,k=10", "reward")
    )
    assert (reward["mean"], reward["low"], reward["gain_mean"]) == ("1.2", "1.0", "0.5")
    (slow,) = (r for r in rows if (r["label"], r["measure"]) == ("greedy", "slowdown"))
    assert slow["mean"] == "1.0"
    (ratio,) = (r for r in rows if (r["label"], r["measure"]) == ("greedy", "compression_ratio"))
    assert ratio["mean"] == "2.5"


def test_page_stands_alone_and_escapes():
    shown = page(RESULTS)
    assert "&lt;b&gt;|ARGS" in shown
    assert "<b>" not in shown
    assert not [word for word in ("http://", "https://", "src=", "href=") if word in shown]
    assert "+1.200<br><small>[+1.000, +1.500]</small>" in shown


@pytest.mark.parametrize(
    "says",
    [
        "4 prompts of hh:held.jsonl, at most 8 new tokens",
        "2 prompts were too long and are left out.",
        "broken: 4 prompts could not be decoded.",
        "<b>|ARGS: 1 responses have no judge:gold.",
        "nltk words",
        "medians of 8 tokens one prompt at a time",
    ],
)
def test_notes_say_what_a_reader_has_to_know(says):
    assert any(says in line for line in notes(RESULTS))
