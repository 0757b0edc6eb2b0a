"""Diversity as in the paper, and as the published script computes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from args_fast.eval import diversity, published_diversity
from args_fast.eval.diversity import WORD, repetition, split_words

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


# ---- the published script ------------------------------------------------------------------------

PUBLISHED = [  # text, rep_2, rep_3, rep_4 in percent, diversity: values of the script itself
    (
        "I can help you plan the light show with warm bulbs and a timer",
        (7.142857, 7.692308, 8.333333),
        0.785714286,
    ),
    (
        "the cat the cat the cat the cat the cat the cat",
        (83.333333, 81.818182, 80.000000),
        0.006060606,
    ),
    (
        "How many strings of lights do you have, and how many strings of lights do you need?",
        (31.578947, 27.777778, 23.529412),
        0.377880977,
    ),
    ("yes", (100, 100, 100), 0),
    (" ", (100, 100, 100), 0),
    (f"{TEN} {TEN}", (50.000000, 47.368421, 44.444444), 0.146198830),
]


@pytest.mark.parametrize(("text", "repetitions", "expected"), PUBLISHED)
def test_published_diversity_is_that_of_the_script(text, repetitions, expected):
    words = split_words()[0](text)
    found = [100 * repetition(words, n) for n in (2, 3, 4)]
    assert found == pytest.approx(repetitions, abs=1e-6)
    assert published_diversity(text) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("text", "repetitions", "expected"), PUBLISHED)
def test_the_regular_expression_finds_the_same_words_in_these_texts(text, repetitions, expected):
    found = [100 * repetition(WORD.findall(text), n) for n in (2, 3, 4)]
    assert found == pytest.approx(repetitions, abs=1e-6)


def test_split_words_says_what_it_stands_on():
    words, description = split_words()
    assert words("It rains. Don't go!") in (
        ["It", "rains", ".", "Do", "n't", "go", "!"],
        ["It", "rains", ".", "Don't", "go", "!"],
    )
    assert "words" in description
