"""How single tokens are shown: as text, and as bytes where a token is part of a character."""

import math
import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from args_fast.generation import Candidate, Token, rewards_by_name
from args_fast.text import UNFINISHED

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space
IMPOSSIBLE = -9999.0  # what OpenAI writes for a log-probability of minus infinity


class Vocabulary:
    """Strings and bytes of a tokenizer's tokens, each worked out once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def text(self, token: int) -> str:
        """The token as text; U+FFFD stands for part of a character."""
        return self._both(token)[0]

    def bytes(self, token: int) -> list[int]:
        """The token's bytes; those of all tokens together are the text's."""
        return self._both(token)[1]

    def whole(self, tokens: list[int]) -> str:
        """The text of a prompt, special tokens left out."""
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def candidates(self, step: Iterable[Candidate]) -> list[dict[str, Any]]:
        """The candidates of one step as JSON."""
        return [
            {
                "token_id": each.token_id,
                "token": self.text(each.token_id),
                "logprob": logprob(each.logprob),
                "reward": number(each.reward),
                "score": number(each.score),
            }
            for each in step
        ]

    def _both(self, token: int) -> tuple[str, list[int]]:
        if token not in self._known:
            self._known[token] = self._work_out(token)
        return self._known[token]

    def _work_out(self, token: int) -> tuple[str, list[int]]:
        text = str(
            self._tokenizer.decode(
                [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        piece = str(self._tokenizer.convert_ids_to_tokens(token) or "")
        if UNFINISHED in text:
            if one := BYTE_PIECE.fullmatch(piece):
                return text, [int(one[1], 16)]
            if piece and all(character in BYTE_OF for character in piece):
                return text, [BYTE_OF[character] for character in piece]
        if piece.startswith(WORD_START) and not text.startswith(" "):
            text = " " + text  # decoders leave the space out where a text begins
        return text, list(text.encode())


def logprob(value: float) -> float:
    """A log-probability that JSON and OpenAI's clients can hold."""
    return value if math.isfinite(value) else IMPOSSIBLE


def number(value: float) -> float | None:
    """A reward or a score; null where there is none."""
    return value if math.isfinite(value) else None


def args_fields(vocabulary: Vocabulary, tokens: list[Token]) -> dict[str, Any]:
    """What guided decoding has to say of some tokens: ``choices[i].args``."""
    fields: dict[str, Any] = {
        "token_ids": [token.token_id for token in tokens],
        "rewards": [number(token.reward) for token in tokens],
        "scores": [number(token.score) for token in tokens],
    }
    if (by_name := rewards_by_name(tokens)) is not None:
        fields["rewards_by_name"] = {
            name: list(map(number, values)) for name, values in by_name.items()
        }
    if tokens and tokens[0].candidates is not None:  # all of them have theirs, or none
        fields["candidates"] = [vocabulary.candidates(t.candidates or ()) for t in tokens]
    return fields
