"""Drafts from the request's own text: what followed its last tokens where they occurred before."""

from collections.abc import Sequence

from args_fast.config import DecodingConfig
from args_fast.drafting.base import Drafts
from args_fast.drafting.suffixes import Suffixes


class NGrams(Drafts):
    """n-grams of prompt and output: for texts that repeat themselves, or copy from the prompt."""

    name = "ngram"

    def open(self, prompt: Sequence[int], config: DecodingConfig) -> "NGramDrafter":
        return NGramDrafter()


class NGramDrafter:
    """Guesses that a text continues as it did after the same tokens before."""

    def __init__(self) -> None:
        self._suffixes = Suffixes()

    def propose(self, ids: Sequence[int], at_most: int) -> list[int]:
        self._suffixes.extend(ids[len(self._suffixes.stream) :])
        return self._suffixes.continuation(ids, at_most)
