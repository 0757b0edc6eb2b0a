"""Which w to try: what a reward gains and what it costs, from a handful of prompts.

Rewards come at any scale, so a w that suits one reward model does nothing, or ruins the text, with
another. Along the greedy text every candidate of every step is judged. For any w this says which
candidate j each step would choose in place of the likeliest, 0, and so, as means over steps,

    changed(w)  how often j is not 0
    gain(w)     r_j - r_0
    price(w)    exp of log p_0 - log p_j: the factor on perplexity, one step at a time

All three rise with w. A range is suggested by the price, which needs no idea of the reward's scale.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, Any

from args_fast.config import DecodingConfig
from args_fast.errors import ArgsError, EvaluationError

if TYPE_CHECKING:
    from args_fast.decoder import ArgsDecoder
    from args_fast.generation import Candidate

PRICES = {"low": 1.02, "start": 1.1, "high": 1.5}  # docs/choosing_w.md says why
POINTS = 41  # of the curve
LAST_PRICE = 4.0  # where the curve ends
BISECTIONS = 60
# So small that the likeliest token always wins, and not 0, for which no reward would be asked.
WEIGHTLESS = 1e-9


@dataclass(frozen=True)
class Step:
    """One step's k candidates, the likeliest first.

    Attributes:
        logprobs: their log-probabilities.
        rewards: r([x, v]) of each candidate.
    """

    logprobs: tuple[float, ...]
    rewards: tuple[float, ...]

    def choice(self, w: float) -> int:
        """The candidate with the highest score; the likelier of equals."""
        scores = [lp + w * r for lp, r in zip(self.logprobs, self.rewards, strict=True)]
        return max(range(len(scores)), key=scores.__getitem__)

    def first_w(self) -> float:
        """The smallest w > 0 that changes the choice; infinity where none does."""
        others = zip(self.logprobs[1:], self.rewards[1:], strict=True)
        suggestion = [
            (self.logprobs[0] - logprob) / (reward - self.rewards[0])
            for logprob, reward in others
            if reward > self.rewards[0]
        ]
        return min(suggestion, default=math.inf)


def steps_of(
    decoder: "ArgsDecoder", prompts: Sequence[Any], *, k: int, max_new_tokens: int
) -> tuple[list[Step], int]:
    """The steps of the greedy texts of prompts, judged; and how many prompts could not be decoded.

    Args:
        decoder: the pair of models.
        prompts: texts, conversations or ids.
        k: candidates of a step, at least 2.
        max_new_tokens: steps of a prompt at most.

    Raises:
        EvaluationError: k is 1, or no prompt could be decoded.
    """
    if k < 2:
        raise EvaluationError(f"k is {k}; a choice needs at least 2 candidates")
    config = DecodingConfig(
        k=k, w=WEIGHTLESS, max_new_tokens=max_new_tokens, return_candidates=True
    )
    steps: list[Step] = []
    failed, reason = 0, ""
    for _, result in decoder.complete((prompt, config) for prompt in prompts):
        if isinstance(result, ArgsError):
            failed, reason = failed + 1, str(result)
        else:
            steps += [_step(candidates) for candidates in result.candidates or ()]
    if not steps:
        raise EvaluationError(f"no prompt could be decoded: {reason or 'there is none'}")
    return steps, failed


def _step(candidates: Sequence["Candidate"]) -> Step:
    return Step(
        tuple(candidate.logprob for candidate in candidates),
        tuple(candidate.reward for candidate in candidates),
    )


@dataclass(frozen=True)
class Point:
    """What one w does, as means over the steps.

    Attributes:
        w: the weight.
        changed: share of the steps that choose another token than the likeliest.
        price: factor on perplexity, 1 or more.
        gain: reward of the choice over the likeliest's, as a share of what the best candidates
            would gain, 0 to 1.
    """

    w: float
    changed: float
    price: float
    gain: float


def point_at(steps: Sequence[Step], w: float) -> Point:
    """What w does to these steps."""
    chosen = [(step, step.choice(w)) for step in steps]
    largest = fmean(max(step.rewards) - step.rewards[0] for step in steps)
    gain = fmean(step.rewards[j] - step.rewards[0] for step, j in chosen)
    cost = fmean(step.logprobs[0] - step.logprobs[j] for step, j in chosen)
    changed = fmean(float(j != 0) for _, j in chosen)
    return Point(w, changed, math.exp(min(cost, 700.0)), gain / largest if largest > 0 else 0.0)


def suggest(steps: Sequence[Step]) -> dict[str, Any]:
    """Spreads, the curve, and the w at each of ``PRICES``.

    Returns:
        steps: how many were judged.
        logprob_spread, reward_spread: medians over steps of the standard deviation over a step's
        candidates; ratio: the first over the second, None where rewards do not differ.
        changeable: share of the steps that any w > 0 changes.
        low, start, high: points of the suggested range; None where no w costs so much.
        curve: points from the first change to a price of ``LAST_PRICE``.
    """
    logprobs = median(pstdev(step.logprobs) for step in steps)
    rewards = median(pstdev(step.rewards) for step in steps)
    needed = [w for step in steps if math.isfinite(w := step.first_w())]
    suggestion: dict[str, Any] = {
        "steps": len(steps),
        "logprob_spread": logprobs,
        "reward_spread": rewards,
        "ratio": logprobs / rewards if rewards > 0 else None,
        "changeable": len(needed) / len(steps),
        **dict.fromkeys(PRICES),
        "curve": [],
    }
    above = [w for w in needed if w > 0]
    if not above:
        return suggestion
    # Beyond ``last`` every step has the candidate with the highest reward.
    first_step, last = min(above) / 2, max(_last_w(step) for step in steps) * 2
    for name, price in PRICES.items():
        priced = _w_of(steps, price, first_step, last)
        suggestion[name] = None if priced is None else asdict(point_at(steps, priced))
    end = _w_of(steps, LAST_PRICE, first_step, last) or last
    scale = (end / first_step) ** (1 / (POINTS - 1))
    suggestion["curve"] = [asdict(point_at(steps, first_step * scale**i)) for i in range(POINTS)]
    return suggestion


def _last_w(step: Step) -> float:
    """The w from which on the step chooses by the reward alone; 0 if it has nothing to choose."""
    best = max(step.rewards)
    behind = [best - reward for reward in step.rewards if reward < best]
    return (step.logprobs[0] - step.logprobs[-1]) / min(behind) if behind else 0.0


def _w_of(steps: Sequence[Step], price: float, low: float, high: float) -> float | None:
    """The largest w that does not cost more; None where none costs so much."""
    if point_at(steps, high).price <= price:
        return None
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        if point_at(steps, middle).price <= price:
            low = middle
        else:
            high = middle
    return low
