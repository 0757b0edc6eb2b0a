"""Drafts from earlier runs of the same prompts: sweeps, samples, runs that are repeated."""

from collections import OrderedDict
from collections.abc import Sequence

from args_fast.config import DecodingConfig
from args_fast.drafting.base import Drafts
from args_fast.drafting.ngram import NGramDrafter
from args_fast.drafting.suffixes import BREAK, LENGTHS, Suffixes

# Tokens of all streams together, prompts included: some 60 MB with their index. The prompts that
# were asked for least recently are forgotten first.
MAX_TOKENS = 2**16


class History(Drafts):
    """Responses of earlier requests with the same prompt.

    Args:
        max_tokens: that are remembered, of prompts and responses together.
    """

    name = "history"

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._runs: OrderedDict[tuple[int, ...], Suffixes] = OrderedDict()
        self.tokens = 0

    def open(self, prompt: Sequence[int], config: DecodingConfig) -> "HistoryDrafter":
        return HistoryDrafter(self, tuple(prompt))

    def runs(self, prompt: tuple[int, ...]) -> Suffixes | None:
        """Earlier responses to a prompt."""
        if prompt in self._runs:
            self._runs.move_to_end(prompt)
        return self._runs.get(prompt)

    def learn(self, prompt: Sequence[int], response: Sequence[int]) -> None:
        # With the end of the prompt, so that the first token of a response follows something.
        run = [*prompt[-LENGTHS[0] :], *response, BREAK]
        key = tuple(prompt)
        if len(key) + len(run) > self._max_tokens:
            return
        if key not in self._runs:
            self._runs[key] = Suffixes()
            self.tokens += len(key)
        self._runs.move_to_end(key)
        self._runs[key].extend(run)
        self.tokens += len(run)
        while self.tokens > self._max_tokens:
            self._forget()

    def _forget(self) -> None:
        key, suffixes = self._runs.popitem(last=False)
        self.tokens -= len(key) + len(suffixes.stream)


class HistoryDrafter:
    """Guesses that a text continues as an earlier response did after the same tokens."""

    def __init__(self, history: History, prompt: tuple[int, ...]) -> None:
        self._history = history
        self._prompt = prompt

    def propose(self, ids: Sequence[int], at_most: int) -> list[int]:
        runs = self._history.runs(self._prompt)  # of samples side by side one may have finished
        return [] if runs is None else runs.continuation(ids, at_most)


class AutoDrafts(History):
    """Earlier runs of the same prompt, else n-grams of prompt and output; only where the rule of
    worth says that they pay."""

    name = "auto"
    at_least = 0

    def open(self, prompt: Sequence[int], config: DecodingConfig) -> "EitherDrafter":  # type: ignore[override]
        return EitherDrafter(super().open(prompt, config))


class EitherDrafter:
    """Guesses from earlier runs, else from the text itself."""

    def __init__(self, earlier: HistoryDrafter) -> None:
        self._earlier = earlier
        self._own = NGramDrafter()

    def propose(self, ids: Sequence[int], at_most: int) -> list[int]:
        own = self._own.propose(ids, at_most)  # which takes note of the text in any case
        return self._earlier.propose(ids, at_most) or own
