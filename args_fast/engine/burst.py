"""A burst of steps that the device was asked for, and how its tokens reach the requests."""

import math
from dataclasses import dataclass, field
from typing import Any

from args_fast.engine.batch import Arrival
from args_fast.engine.request import Request
from args_fast.errors import NonFiniteError
from args_fast.generation import Candidate


@dataclass
class Burst:
    """Steps whose tokens the host has not read yet.

    Attributes:
        requests: one per row.
        steps: the number of decode steps in the burst.
        names: of the rewards whose raw values are reported.
        arrival: on the host, complete once ``event`` is over (None: at once).
        errors: what kept a reward on the host from judging single rows, by row.
        counts: the number of tokens of each row, where rows differ; None for ``steps``.
    """

    requests: list[Request]
    steps: int
    names: tuple[str, ...]
    arrival: Arrival
    errors: dict[int, Exception] = field(default_factory=dict)
    event: Any = None
    counts: list[int] | None = None

    def wait(self) -> None:
        """Wait until the device has come so far."""
        if self.event is not None:
            self.event.synchronize()

    def deliver(self, row: int, request: Request) -> None:
        """Give a request its tokens, up to its end or to its error."""
        steps = self.steps if self.counts is None else self.counts[row]
        tokens = self.arrival.tokens[row, :steps].tolist()
        stats = self.arrival.stats[row, :steps].tolist()
        unknown = not request.guided and request.config.w != 0  # k = 1: w * r is not computed
        for i, (token, (logprob, reward, score)) in enumerate(zip(tokens, stats, strict=True)):
            score = math.nan if unknown else score
            error = self.errors.get(row) or non_finite(logprob, score, request.guided)
            if error is not None:
                request.fail(error)
            if request.finished:
                return
            candidates = self._candidates(row, i, request)
            request.push(token, logprob, reward, score, candidates, self._by_name(row, i))

    def _candidates(self, row: int, i: int, request: Request) -> tuple[Candidate, ...] | None:
        ids, details = self.arrival.ids, self.arrival.details
        if ids is None or details is None or not request.config.return_candidates:
            return None
        w = request.config.w
        return tuple(
            Candidate(token, logprob, reward, logprob + w * reward if w != 0 else logprob)
            for token, (logprob, reward) in zip(
                ids[row, i, : request.k].tolist(),
                details[row, i, : request.k].tolist(),
                strict=True,
            )
            if logprob > float("-inf")
        )

    def _by_name(self, row: int, i: int) -> dict[str, float] | None:
        if self.arrival.by_name is None:
            return None
        return dict(zip(self.names, self.arrival.by_name[row, i].tolist(), strict=True))


def non_finite(logprob: float, score: float, guided: bool) -> NonFiniteError | None:
    """The error that NaN marks, if it does. The ops mark a broken row with NaN, so the check costs
    the device nothing."""
    if logprob != logprob:
        return NonFiniteError(
            "the language model's logits contain a NaN or +inf, or nothing above -inf: there is no "
            "token to choose. Check its weights, or use dtype='float32' (float16 overflows easily)."
        )
    if guided and score != score:
        return NonFiniteError(
            "the reward model gave a candidate a NaN or infinite reward, so no choice by it means "
            "anything. Check its weights, or use dtype='float32' (float16 overflows easily)."
        )
    return None
