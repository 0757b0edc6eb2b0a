"""What decoding returns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Candidate:
    """One of the k tokens that a step chose from.

    Attributes:
        token_id: the candidate.
        logprob: log p(token | context) over the whole vocabulary.
        reward: r([x, token]); NaN where no reward was consulted.
        score: logprob + w * reward; NaN where it is not known.
    """

    token_id: int
    logprob: float
    reward: float
    score: float


@dataclass(frozen=True)
class Generation:
    """One decoded sequence.

    Attributes:
        token_ids: the new tokens, without the prompt; an end token, and the tokens that completed a
            stop string, are among them.
        text: the new tokens as text without special tokens, cut before the stop string; None where
            there is no tokenizer.
        logprobs: log p(token | context) over the whole vocabulary, one per new token.
        rewards: r([x, token]), the reward model's raw output, one per new token; so the last one is
            the reward of the whole text. NaN where the reward model was not consulted
            (k = 1 or w = 0).
        scores: logprob + w * reward, one per new token; NaN where it is not known (k = 1, w != 0).
        finish_reason: "eos", "stop" or "length"; "stop" where an end token is a stop string too.
        prompt_token_ids: the prompt as the models saw it.
        candidates: the candidates of every step, most likely first, with
            ``DecodingConfig(return_candidates=True)``; else None.
        rewards_by_name: with several rewards, the raw reward of each by name, one per new token;
            else None.
        skipped: the share of steps without the reward, whose ``rewards`` are NaN and whose
            ``scores`` the log-probability, with ``DecodingConfig.every`` or ``certain``; else None.
        drafted, accepted: drafted tokens that were verified, and how many of them are among the
            tokens, with the engine's option ``draft``; else None.
    """

    token_ids: list[int]
    text: str | None
    logprobs: list[float]
    rewards: list[float]
    scores: list[float]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    candidates: list[tuple[Candidate, ...]] | None = None
    rewards_by_name: dict[str, list[float]] | None = None
    skipped: float | None = None
    drafted: int | None = None
    accepted: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values; NaN and infinities become null."""
        return _finite(asdict(self))


def _finite(value: Any) -> Any:
    """The value with None in place of every NaN and infinity, at any depth."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


@dataclass(frozen=True)
class Token:
    """One step of a stream.

    Attributes:
        token_id: the token chosen.
        text: what it adds to the text. May be empty: bytes of an unfinished character, or
            characters that may yet turn out to be the start of a stop string, come with a later
            token.
        logprob, reward, score: as in ``Generation``.
        finish_reason: None until the last token.
        candidates: as one step of ``Generation.candidates``; None unless asked for.
        rewards_by_name: with several rewards, the raw reward of each by name; else None.
        cached_tokens: with the first token, how many tokens of the prompt were in the cache when
            the request came; None with later ones.
    """

    token_id: int
    text: str | None
    logprob: float
    reward: float
    score: float
    finish_reason: FinishReason | None
    candidates: tuple[Candidate, ...] | None = None
    rewards_by_name: dict[str, float] | None = None
    cached_tokens: int | None = None


def rewards_by_name(tokens: Sequence[Token]) -> dict[str, list[float]] | None:
    """The raw reward of each name, one per token; None where there is only one reward."""
    steps = [token.rewards_by_name for token in tokens if token.rewards_by_name is not None]
    return {name: [step[name] for step in steps] for name in steps[0]} if steps else None
