"""How many drafted tokens are worth a pass: the rule by which drafts grow, shrink and stop.

A draft of g tokens brings 1 + p + ... + p^g tokens where each is accepted with probability p, and
costs rows: g + 1 of the language model, k * (1 + closings) * (g + 1) of a reward model. The rule
takes the g with the most tokens per cost. p is what was accepted of the request's own drafts.
"""

from dataclasses import dataclass

MAX_DRAFT = 8  # tokens
MAX_ROWS = 512  # of one pass of a reward model, over all requests of a batch

# Cost of a further row of a pass, where its first costs 1. SmolLM2-135M-Instruct, float32, fused
# layers, two cores: a pass of one row takes 7.5 ms, of ten rows 13.1 ms. That is 0.083, rounded up
# because drafts that do not pay cost time.
# ``examples/smollm2/draft_worth.py`` measures it on another machine.
ROW = 0.09

PRIOR = 0.3  # p before anything is known, with the weight of one token
MEMORY = 0.9  # what is left of an observation after the next one
SURE = 0.98  # p at most


@dataclass(frozen=True)
class Pass:
    """A model's forward in a step.

    Attributes:
        share: cost of a row, where one of the language model's costs 1.
        rows: per position of a draft.
        drafted: there is such a pass only where a draft is verified.
    """

    share: float
    rows: int
    drafted: bool = False


class Acceptance:
    """How often a drafted token was right, the latest counting most."""

    def __init__(self) -> None:
        self._right, self._tried = PRIOR, 1.0

    @property
    def rate(self) -> float:
        """Probability that the next drafted token is right."""
        return min(SURE, self._right / self._tried)

    def observe(self, right: int, tried: int) -> None:
        """Of ``tried`` tokens the first ``right`` were."""
        for i in range(tried):
            self._right = MEMORY * self._right + (i < right)
            self._tried = MEMORY * self._tried + 1


def cost(passes: list[Pass], draft: int, requests: int) -> float:
    """Cost of a step with drafts of this many tokens, in passes of the language model over one
    row."""
    taken = [one_pass for one_pass in passes if draft or not one_pass.drafted]
    rows = [requests * one_pass.rows * (draft + 1) for one_pass in taken]
    return sum(p.share * (1 + ROW * (n - 1)) for p, n in zip(taken, rows, strict=True))


def best_draft(
    passes: list[Pass], rate: float, requests: int, *, at_least: int, at_most: int, token: float
) -> int:
    """The number of drafted tokens that brings the most tokens per cost.

    Args:
        passes: of a step.
        rate: probability that a drafted token is right.
        requests: decoded together.
        at_least, at_most: bounds of the answer; the upper one wins.
        token: cost of drafting a token, per request.
    """
    widest = max((p.rows for p in passes), default=1) * requests
    at_most = min(at_most, MAX_ROWS // widest - 1)
    if at_most <= 0:
        return 0

    def worth(draft: int) -> float:
        tokens = sum(rate**i for i in range(draft + 1))
        return tokens / (cost(passes, draft, requests) + requests * token * draft)

    return max(range(min(at_least, at_most), at_most + 1), key=worth)
