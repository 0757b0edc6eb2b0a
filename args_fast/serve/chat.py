"""POST /v1/chat/completions: a conversation in, the assistant's next turn out."""

from typing import Any

from args_fast.generation import Token
from args_fast.serve.decoding import Sample
from args_fast.serve.errors import invalid
from args_fast.serve.formats import AnswerFormat, finish_reason, text_of
from args_fast.serve.protocol import ChatRequest
from args_fast.serve.vocabulary import Vocabulary, logprob


class ChatFormat(AnswerFormat):
    """Chat completions.

    Args:
        model, vocabulary: as for ``AnswerFormat``.
        top_logprobs: alternatives to show per token; None for no log-probabilities at all.
    """

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, model: str, vocabulary: Vocabulary, top_logprobs: int | None) -> None:
        super().__init__(model, vocabulary)
        self._top = top_logprobs

    def opening(self, sample: Sample) -> dict[str, Any]:
        return self._delta(sample, {"role": "assistant", "content": ""})

    def piece(self, sample: Sample, token: Token) -> dict[str, Any]:
        choice = self._delta(sample, {"content": token.text or ""})
        return choice | {"logprobs": self._logprobs([token]), "args": self.piece_args(token)}

    def closing(self, sample: Sample, reason: str | None) -> dict[str, Any]:
        args = self.closing_args(sample, reason)
        return self._delta(sample, {}) | {"finish_reason": finish_reason(reason), "args": args}

    def choice(self, sample: Sample, tokens: list[Token]) -> dict[str, Any]:
        return {
            "index": sample.index,
            "message": {"role": "assistant", "content": text_of(tokens), "refusal": None},
            "logprobs": self._logprobs(tokens),
            "finish_reason": finish_reason(tokens[-1].finish_reason),
            "args": self.whole_args(sample, tokens),
        }

    def _delta(self, sample: Sample, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": sample.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        content = []
        for token in tokens:
            likeliest = (token.candidates or ())[: self._top]
            top = [self._shown(each.token_id, each.logprob) for each in likeliest]
            content.append(self._shown(token.token_id, token.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _shown(self, token: int, value: float) -> dict[str, Any]:
        return {
            "token": self._vocabulary.text(token),
            "logprob": logprob(value),
            "bytes": self._vocabulary.bytes(token),
        }


def top_logprobs(request: ChatRequest) -> int | None:
    """Alternatives to show per token; None without log-probabilities. Raises an ApiError where the
    two fields contradict each other."""
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs is given without logprobs: true; set both", "top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None
