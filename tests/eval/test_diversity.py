"""Diversity as in the paper: unique n-grams over all n-grams, multiplied over n = 2, 3, 4."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from args_fast.eval import diversity

TEN = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEN, 1.0),
        (f"{TEN} {TEN}", (10 / 19) * (10 / 18) * (10 / 17)),
        ("the cat the cat the cat the cat the cat the cat", (2 / 11) * (2 / 10) * (2 / 9)),
        ("a b a b c", (3 / 4) * (3 / 3) * (2 / 2)),
        ("no no no no", 1 / 3 * 1 / 2 * 1 / 1),
    ],
)
def test_counted_by_hand(text, expected):
    assert diversity(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", " ", "yes", "yes of course"])
def test_a_text_too_short_to_have_4_grams_is_not_diverse(text):
    assert diversity(text) == 0.0


def test_words_are_what_stands_between_blanks():
    assert diversity("a  b\n\na b\tc") == diversity("a b a b c")
    assert diversity("Yes, yes yes, yes") == 1.0  # case and punctuation are part of a word


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=30))
def test_equals_a_count_of_the_n_grams_that_came_before(words):
    expected = 1.0
    for n in (2, 3, 4):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) + 1 - n)]
        repeats = sum(gram in grams[:i] for i, gram in enumerate(grams))
        expected *= 1 - repeats / len(grams)
    assert diversity(" ".join(words)) == pytest.approx(expected)
