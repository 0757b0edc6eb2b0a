"""Which running requests have a draft in the next step, how long it is, and what came of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from args_fast.drafting.base import Drafter, Drafts
from args_fast.drafting.worth import Acceptance, Pass, best_draft
from args_fast.engine.request import Request
from args_fast.models.backbone import Backbone
from args_fast.models.compact import parameter_count
from args_fast.rewards.panel import Panel

# Steps after which a draft that was not worth verifying is tried again, where drafting itself
# costs something. Free drafters are watched in every step.
PROBE_EVERY = 16


@dataclass
class DraftState:
    """What is known of one request's drafts.

    Attributes:
        drafter: of the request, while it runs.
        acceptance: how often its drafts were right.
        guess: the draft of this step, whether it is verified or only watched.
        held: no draft in the next step.
        idle: steps since the drafter was last asked.
    """

    drafter: Drafter | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    guess: list[int] = field(default_factory=list)
    held: bool = False
    idle: int = 0


class Drafting:
    """The drafts of an engine's requests.

    Args:
        drafts: the kind of drafter.
        lm: the language model.
        panel: the rewards, each of which judges drafts.
    """

    def __init__(self, drafts: Drafts, lm: Backbone, panel: Panel) -> None:
        self.drafts = drafts
        self._vocabulary = lm.vocabulary
        self._states: dict[Request, DraftState] = {}
        size = parameter_count(lm.model)
        self._passes = {
            name: (_size(reward.weights()) / size, reward.rows_per_candidate or 0)
            for name, reward in panel.rewards.items()
        }
        self._on_hidden = {name for name, r in panel.rewards.items() if r.reads_hidden}

    def propose(
        self, requests: Sequence[Request], fail: Callable[[Request, Exception], None]
    ) -> dict[Request, list[int]]:
        """The drafts that are worth verifying, of requests that run together. A drafter's exception
        ends its request, through ``fail``."""
        drafts = {}
        for request in requests:
            try:
                draft = self._propose(request, len(requests))
            except Exception as error:
                fail(request, error)
                continue
            if draft:
                drafts[request] = draft
        return drafts

    def note(self, request: Request, draft: Sequence[int], before: int) -> int:
        """Take note of what a step gave a request that had ``before`` tokens.

        Args:
            request: of the step.
            draft: that was verified; empty where none was.
            before: tokens of its response before the step.

        Returns:
            How many of the drafted tokens are among the new ones.
        """
        new = [token.token_id for token in request.tokens[before:]]
        accepted = _agreeing(draft, new)
        if draft:
            request.drafted = (request.drafted or 0) + len(draft)
            request.accepted = (request.accepted or 0) + accepted
        if (state := self._states.get(request)) is not None:  # it may have left
            if new:
                right = _agreeing(state.guess, new)
                state.acceptance.observe(right, min(len(state.guess), right + 1))
            # A value that was not finite gave no token: a plain step tells which request failed.
            state.held = bool(draft) and not new
            state.guess = []
        return accepted

    def close(self, request: Request) -> None:
        """A request gives its memory back; one that has finished is an earlier run from now on."""
        self._states.pop(request, None)
        if request.finish_reason is not None:
            self.drafts.learn(request.prompt, request.response)

    def _propose(self, request: Request, requests: int) -> list[int]:
        if request.skips or request.remaining < 2:
            return []
        if request.drafted is None:
            request.drafted = request.accepted = 0
        state = self._states.setdefault(request, DraftState())
        if state.held:
            return []
        length = best_draft(
            self._passes_of(request),
            state.acceptance.rate,
            requests,
            at_least=self.drafts.at_least,
            at_most=min(self.drafts.at_most, request.remaining - 1),
            token=self.drafts.cost,
        )
        state.idle += 1
        if length == 0 and self.drafts.cost > 0 and state.idle < PROBE_EVERY:
            return []
        state.idle = 0
        if state.drafter is None:
            state.drafter = self.drafts.open(request.prompt, request.config)
        draft = state.drafter.propose(request.ids, max(1, length))[: max(1, length)]
        state.guess = self._until_end(request, draft)
        return state.guess[:length]

    def _passes_of(self, request: Request) -> list[Pass]:
        if not request.weights:
            return [Pass(1.0, 1)]
        hidden = any(name in self._on_hidden for name in request.weights)
        passes = [Pass(1.0, 1, drafted=hidden)]
        if hidden:
            passes.append(Pass(1.0, request.k))
        for name in request.weights:
            share, rows = self._passes[name]
            if name not in self._on_hidden:
                passes.append(Pass(share, rows * request.k))
        return passes

    def _until_end(self, request: Request, draft: Sequence[int]) -> list[int]:
        """The draft up to a token that ends the request, after which nothing comes."""
        ends = request.end_tokens | request.stop_tokens
        for i, token in enumerate(draft):
            if token in ends or not 0 <= token < self._vocabulary:
                return list(draft[:i])
        return list(draft)


def _agreeing(draft: Sequence[int], tokens: Sequence[int]) -> int:
    for i, (guess, token) in enumerate(zip(draft, tokens, strict=False)):
        if guess != token:
            return i
    return min(len(draft), len(tokens))


def _size(weights: object) -> int:
    return max(1, sum(w.numel() for w in weights))  # type: ignore[attr-defined]
