"""Model folders with random faults are refused by name, or decode to the right tokens.

ARGS_FAST_LONG=1 tries 10,000; a fault is tried again by its number:
python tests/helpers/fuzz.py NUMBER 1
"""

import os

import fuzz
import pytest

LONG = os.environ.get("ARGS_FAST_LONG") == "1"
CASES, GROUPS = (10_000, 20) if LONG else (120, 4)


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


# ---- the fuzz would notice -----------------------------------------------------------------------


def test_other_tokens_are_noticed(tmp_path):
    folder, expected = fuzz.pair_folder(0)
    assert fuzz._decode(folder, expected) == "right"
    assert fuzz._decode(folder, [0, 0, 0]).startswith("wrong")


def test_an_error_that_is_not_ours_is_noticed(monkeypatch):
    folder, expected = fuzz.pair_folder(0)
    monkeypatch.setattr(fuzz, "deviation", lambda *given: {}["x"])
    assert fuzz._decode(folder, expected).startswith("traceback")
