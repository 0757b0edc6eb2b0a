"""Model folders, and files of prompts, with random faults are refused by name, or decode to the
right tokens.

ARGS_FAST_LONG=1 tries 10,000 folders and 2,000 files; a fault is tried again by its number:
python tests/helpers/fuzz.py NUMBER 1, or fuzz_lines.py
"""

import os

import fuzz
import fuzz_lines
import pytest

LONG = os.environ.get("ARGS_FAST_LONG") == "1"
CASES, GROUPS = (10_000, 20) if LONG else (60, 2)
FILES = 2_000 if LONG else 60


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_faulty_folder_is_refused_or_right(group):
    size = CASES // GROUPS
    verdicts = [(n, *fuzz.judge(n)) for n in range(group * size, (group + 1) * size)]
    faults = [found for found in verdicts if not found[1].startswith(("right", "refused"))]
    assert not faults
    # Else the faults are too coarse to find anything.
    assert sum(verdict == "right" for _, verdict, _ in verdicts) >= size / 5


def test_the_same_number_is_the_same_fault():
    assert fuzz.judge(7)[1] == fuzz.judge(7)[1]


@pytest.mark.filterwarnings("ignore")  # of text that is not wrapped, say
def test_a_faulty_line_is_an_error_record_and_the_others_are_decoded():
    verdicts = [(n, *fuzz_lines.judge(n)) for n in range(FILES)]
    assert not [found for found in verdicts if not found[1].startswith(("right", "refused"))]
    decoded = sum(int(v.partition(":")[2]) for _, v, _ in verdicts if v.startswith("right"))
    assert decoded >= FILES  # of four lines each


# ---- the fuzz would notice -----------------------------------------------------------------------


def test_other_tokens_are_noticed(tmp_path):
    folder, expected = fuzz.pair_folder(0)
    assert fuzz._decode(folder, expected) == "right"
    assert fuzz._decode(folder, [0, 0, 0]).startswith("wrong")


def test_an_error_that_is_not_ours_is_noticed(monkeypatch):
    folder, expected = fuzz.pair_folder(0)
    monkeypatch.setattr(fuzz, "deviation", lambda *given: {}["x"])
    assert fuzz._decode(folder, expected).startswith("traceback")


def test_tokens_of_another_line_are_noticed(monkeypatch):
    (number,) = [n for n in range(20) if fuzz_lines.judge(n)[0] == "right: 3"][:1]
    monkeypatch.setattr(fuzz_lines, "_alone", lambda content: [[0]])
    assert fuzz_lines.judge(number)[0].startswith("wrong")


def test_a_line_that_is_lost_is_noticed(monkeypatch):
    lines = fuzz_lines.decode_lines
    lost = lambda *given: list(lines(*given))[:-1]  # noqa: E731
    monkeypatch.setattr(fuzz_lines, "decode_lines", lost)
    verdicts = {fuzz_lines.judge(n)[0] for n in range(10)}
    assert "wrong: 3 records of 4 lines" in verdicts
