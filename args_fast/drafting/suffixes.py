"""Where the last tokens of a text occurred before, and what followed them there."""

from collections.abc import Sequence

LENGTHS = (8, 4, 2)  # of the suffixes that are looked up, longest first
BREAK = -1  # between texts of one stream; no token has this id


class Suffixes:
    """A stream of tokens, and the place after the latest occurrence of each of its n-grams that
    something follows."""

    def __init__(self) -> None:
        self.stream: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the stream."""
        for token in tokens:
            stop = len(self.stream)
            for length in LENGTHS:
                if length <= stop:
                    self._after[tuple(self.stream[stop - length :])] = stop
            self.stream.append(token)

    def continuation(self, ids: Sequence[int], at_most: int) -> list[int]:
        """What followed the longest suffix of ``ids`` that the stream has; nothing where it has
        none."""
        for length in LENGTHS:
            if length > len(ids):
                continue
            start = self._after.get(tuple(ids[len(ids) - length :]))
            if start is not None:
                tokens = self.stream[start : start + at_most]
                return tokens[: tokens.index(BREAK)] if BREAK in tokens else tokens
        return []
