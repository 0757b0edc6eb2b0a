"""Tokens to text while they arrive, and where a stop string cuts it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer prints for part of a character


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that a decoded text leaves out, with their ids."""
    special = {
        token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    for token in tokenizer.all_special_tokens:
        id = tokenizer.convert_tokens_to_ids(token)
        if isinstance(id, int):  # it has one
            special[token] = id
    return special


class TextStream:
    """The text of one sequence, decoded token by token.

    ``text`` is all that is decoded so far, cut before the first stop string; ``take`` returns its
    new part that no later token can take back: unfinished characters wait, and so does an end that
    may yet become a stop string.

    Each push decodes only the last few tokens, not the whole text: those since ``_settled``, whose
    text is known, give the context in which the tokenizer spaces what follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._context = 0  # tokens before this are not decoded again
        self._settled = 0  # tokens before this are in the text
        self._taken = 0

    def push(self, token: int, *, last: bool = False) -> None:
        """Add a token; the last one also brings what was waiting for its end."""
        self._ids.append(token)
        known = self._decode(self._ids[self._context : self._settled])
        window = self._decode(self._ids[self._context :])
        if not last and (window.endswith(UNFINISHED) or len(window) <= len(known)):
            return
        before = len(self.text)
        self.text += window[len(known) :]
        self._context, self._settled = self._settled, len(self._ids)
        self._cut(before)

    def _cut(self, before: int) -> None:
        begins = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self._stop]
        cut = min((begin for begin in begins if begin >= 0), default=None)
        if cut is not None:
            self.text = self.text[:cut]
            self.stopped = True

    def take(self, *, last: bool = False) -> str:
        """The new part of the text, once."""
        safe = len(self.text)
        if not (last or self.stopped):
            longest = max(map(len, self._stop), default=0) - 1
            for held in range(min(longest, safe), 0, -1):
                if any(stop.startswith(self.text[safe - held :]) for stop in self._stop):
                    safe -= held
                    break
        new = self.text[self._taken : safe]
        self._taken = max(self._taken, safe)
        return new

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # one sequence in, one text out
        return text
