"""How little a text repeats itself: the paper's formula, and what the authors' script computes.

The two differ, so each has a name of its own and a table shows both.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from math import prod

N = (2, 3, 4)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def diversity(text: str) -> float:
    """The product over n = 2, 3, 4 of unique n-grams / all n-grams, over the words between blanks.

    From the ARGS paper, section 3.1, "Evaluation metrics" (arXiv 2402.01694). 1 means that no two
    words ever follow one another twice. The paper leaves texts of fewer than four words open, which
    have no 4-grams: here they have diversity 0, as they have by the authors' published script, so
    that an empty answer never passes for a diverse one.
    """
    words = text.split()
    if len(words) < max(N):
        return 0.0
    return prod(len(set(grams)) / len(grams) for grams in (_grams(words, n) for n in N))


def published_diversity(text: str) -> float:
    """Diversity as the authors' published script computes it for one response.

    It is the product over n = 2, 3, 4 of 1 - rep_n with rep_n = 1 - unique / (total + 1), over
    NLTK's words: the 1 in the denominator makes short texts look repetitive.
    """
    words = split_words()[0](text)
    return prod(1 - repetition(words, n) for n in N)


def repetition(words: Sequence[str], n: int) -> float:
    """rep_n of the published script, from 0 to 1: 1 - unique n-grams / (n-grams + 1)."""
    grams = _grams(words, n)
    return 1 - len(set(grams)) / (len(grams) + 1)


@cache
def split_words() -> tuple[Callable[[str], list[str]], str]:
    """The function that splits a text into NLTK's words, and what it stands on, in words.

    NLTK finds sentences with a model that it downloads (punkt). Where that model is missing,
    sentences end at ".", "!" or "?" before a blank, and where NLTK is missing, words are runs of
    letters and digits, or single signs. A result names what was used.
    """
    try:
        from nltk import data
        from nltk.tokenize import NLTKWordTokenizer, word_tokenize
    except ImportError:
        return WORD.findall, "regular expression for words (nltk is not installed)"
    try:
        data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        tokenize = NLTKWordTokenizer().tokenize

        def words(text: str) -> list[str]:
            return [word for part in SENTENCE_END.split(text) for word in tokenize(part)]

        return words, "nltk words, regular expression for sentences"
    return word_tokenize, "nltk words and sentences"


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
