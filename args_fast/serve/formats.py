"""The shape of an answer, which chat and text completions fill in differently."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from typing import Any

from args_fast.generation import Token
from args_fast.serve.decoding import Sample
from args_fast.serve.vocabulary import Vocabulary, args_fields

FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}  # ours -> OpenAI's


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_json(value: Any) -> bytes:
    """Compact JSON. NaN is a mistake here, not a value."""
    return _ENCODER.encode(value).encode()


class AnswerFormat(ABC):
    """How the tokens of one request become JSON, whole or chunk by chunk.

    Args:
        model: the name that the answer carries.
        vocabulary: how tokens are shown.
    """

    prefix: str  # of the answer's id
    kind: str  # OpenAI's name of the object
    chunk_kind: str  # and of one chunk of a stream

    def __init__(self, model: str, vocabulary: Vocabulary) -> None:
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._vocabulary = vocabulary
        self._head = as_json(self._envelope(self.chunk_kind))[:-1] + b","

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """A complete answer."""
        return self._envelope(self.kind) | {"choices": choices, "usage": usage}

    def event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        """One chunk of a stream as a server-sent event; ``more`` joins it."""
        # What all chunks begin with is written once.
        return b"data: " + self._head + as_json({"choices": choices} | more)[1:] + b"\n\n"

    @abstractmethod
    def opening(self, sample: Sample) -> dict[str, Any] | None:
        """The first choice of a sample's stream, before any token."""

    @abstractmethod
    def piece(self, sample: Sample, token: Token) -> dict[str, Any]:
        """The choice that brings one token."""

    @abstractmethod
    def closing(self, sample: Sample, reason: str | None) -> dict[str, Any]:
        """The last choice of a sample's stream. ``reason`` is None where no token was decoded."""

    @abstractmethod
    def choice(self, sample: Sample, tokens: list[Token]) -> dict[str, Any]:
        """A sample's whole answer."""

    def piece_args(self, token: Token) -> dict[str, Any]:
        """``args`` of the choice that brings a token."""
        return args_fields(self._vocabulary, [token])

    def closing_args(self, sample: Sample, reason: str | None) -> dict[str, Any]:
        """``args`` of a sample's last choice: how it ended, and how to get it again."""
        seed = sample.config.seed if sample.config else None
        return {"finish_reason": reason or "length", "seed": seed}

    def whole_args(self, sample: Sample, tokens: list[Token]) -> dict[str, Any]:
        """``args`` of a whole answer."""
        closing = self.closing_args(sample, tokens[-1].finish_reason if tokens else None)
        return args_fields(self._vocabulary, tokens) | closing

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def finish_reason(reason: str | None) -> str:
    """OpenAI's word for why an answer ended."""
    return FINISH_REASONS[reason or "length"]


def text_of(tokens: list[Token]) -> str:
    """The text of an answer: the pieces that its tokens brought."""
    return "".join(token.text or "" for token in tokens)
