"""POST /v1/completions: texts or token ids in, what follows them out."""

import math
from collections.abc import Iterable
from typing import Any

from args_fast.generation import Candidate, Token
from args_fast.serve.decoding import Sample
from args_fast.serve.engine_view import ScoredPrompt
from args_fast.serve.formats import AnswerFormat, finish_reason, text_of
from args_fast.serve.vocabulary import Vocabulary, logprob

Row = tuple[int, float, tuple[Candidate, ...]]  # token, log-probability, candidates of one place


class CompletionFormat(AnswerFormat):
    """Text completions.

    Args:
        model, vocabulary: as for ``AnswerFormat``.
        top_logprobs: alternatives to show per token; None for no log-probabilities at all.
        echoes: text of each prompt, by the sample's index, where it is repeated before the answer.
        scored: log-probabilities of each prompt, likewise.
    """

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        top_logprobs: int | None,
        echoes: dict[int, str],
        scored: dict[int, ScoredPrompt],
    ) -> None:
        super().__init__(model, vocabulary)
        self._top = top_logprobs
        self._echoes = echoes
        self._scored = scored
        self._offsets: dict[int, int] = {}  # length of the text before each sample's next token

    def opening(self, sample: Sample) -> dict[str, Any] | None:
        if sample.index not in self._echoes:
            return None
        rows = self._prompt_rows(sample)
        return self._text(sample, self._echoes[sample.index], self._logprobs(sample, rows))

    def piece(self, sample: Sample, token: Token) -> dict[str, Any]:
        logprobs = self._logprobs(sample, [_row(token)])
        return self._text(sample, token.text or "", logprobs) | {"args": self.piece_args(token)}

    def closing(self, sample: Sample, reason: str | None) -> dict[str, Any]:
        args = self.closing_args(sample, reason)
        return self._text(sample, "") | {"finish_reason": finish_reason(reason), "args": args}

    def choice(self, sample: Sample, tokens: list[Token]) -> dict[str, Any]:
        rows = [*self._prompt_rows(sample), *map(_row, tokens)]
        text = self._echoes.get(sample.index, "") + text_of(tokens)
        reason = tokens[-1].finish_reason if tokens else None
        return self._text(sample, text, self._logprobs(sample, rows)) | {
            "finish_reason": finish_reason(reason),
            "args": self.whole_args(sample, tokens),
        }

    def _text(
        self, sample: Sample, text: str, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"index": sample.index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _prompt_rows(self, sample: Sample) -> list[Row]:
        if (scored := self._scored.get(sample.index)) is None:
            return []
        return list(zip(sample.prompt.ids, scored.logprobs, scored.candidates, strict=True))

    def _logprobs(self, sample: Sample, rows: Iterable[Row]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        columns: dict[str, list[Any]] = {
            name: [] for name in ("text_offset", "token_logprobs", "tokens", "top_logprobs")
        }
        for token, value, candidates in rows:
            text = self._vocabulary.text(token)
            offset = self._offsets.get(sample.index, 0)
            self._offsets[sample.index] = offset + len(text)
            columns["text_offset"].append(offset)
            columns["tokens"].append(text)
            if math.isnan(value):  # the first token follows nothing
                columns["token_logprobs"].append(None)
                columns["top_logprobs"].append(None)
                continue
            # Where the token is a candidate, its number is the candidate's, to the last bit.
            value = next((c.logprob for c in candidates if c.token_id == token), value)
            top: dict[str, float] = {}
            for likely in candidates[: self._top]:
                top.setdefault(self._vocabulary.text(likely.token_id), logprob(likely.logprob))
            columns["token_logprobs"].append(logprob(value))
            top.setdefault(text, logprob(value))  # OpenAI's has the token itself too
            columns["top_logprobs"].append(top)
        return columns


def _row(token: Token) -> Row:
    return token.token_id, token.logprob, token.candidates or ()
