"""One request: what has been decoded, where it is, and the pages that it holds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from args_fast.config import DecodingConfig
from args_fast.generation import Candidate, FinishReason, Generation, Token, rewards_by_name
from args_fast.kvcache.pages import PagedText

ProcessLogits = Callable[[list[int], Tensor], Tensor]


class Status(Enum):
    """Where a request is."""

    CREATED = "created"  # or paused
    WAITING = "waiting"  # for pages
    FILLING = "filling"  # its prompt is being stored
    RUNNING = "running"  # it is decoded
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TextCallback(Protocol):
    """Turns ids into text as they arrive, and looks for stop strings; the engine knows ids only."""

    text: str
    stopped: bool

    def push(self, token: int, *, last: bool = False) -> None: ...
    def take(self, *, last: bool = False) -> str: ...


@dataclass(eq=False)
class Request:
    """A prompt, its options, and its tokens so far.

    Attributes:
        prompt: its ids.
        config: how it is decoded; one sample.
        end_tokens: ids that end it.
        text: its text as it arrives; None where only ids are wanted.
        weights: of the rewards that guide it, by name; none for unguided decoding.
        stop_tokens: ids that end it as a stop string does.
        prompt_text: the prompt as it was given, for rewards that read text.
        messages: the conversation that the prompt was, if it was one.
        process_logits: (ids, logits [V]) -> logits [V] of the next token, on the host at every
            step; None where the logits stay as they are.
        ids: the prompt and the tokens so far. Nothing else is needed to resume a request whose
            pages were taken away.
        error: why it failed.
        texts: what each cache group holds of it; group 0 is the language model's.
        in_flight: tokens that the device has been asked for and that are not among ``ids`` yet.
        cached_tokens: tokens of its prompt that were in the cache when it was first admitted.
        lag: tokens at its end that were chosen without its rewards, and are not in their K/V.
        drafted, accepted: drafted tokens that were verified, and those among its tokens; None
            where nothing drafts.
    """

    prompt: list[int]
    config: DecodingConfig
    end_tokens: frozenset[int]
    text: TextCallback | None
    weights: dict[str, float] = field(default_factory=dict)
    stop_tokens: frozenset[int] = frozenset()
    prompt_text: str | None = None
    messages: list[dict] | None = None
    process_logits: ProcessLogits | None = None
    status: Status = Status.CREATED
    finish_reason: FinishReason | None = None
    error: BaseException | None = None
    tokens: list[Token] = field(default_factory=list)
    texts: dict[int, PagedText] = field(default_factory=dict)
    in_flight: int = 0
    cached_tokens: int | None = None
    lag: int = 0
    drafted: int | None = None
    accepted: int | None = None
    _streamed: int = 0
    _noise: Tensor | None = None

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)
        self.texts[0] = PagedText(self.ids)

    @property
    def response(self) -> list[int]:
        """The new tokens so far."""
        return self.ids[len(self.prompt) :]

    @property
    def guided(self) -> bool:
        """Whether a reward is consulted."""
        return bool(self.weights)

    @property
    def skips(self) -> bool:
        """Whether some steps do without its rewards."""
        return self.guided and self.config.skips

    def skips_reward(self, likeliest: float) -> bool:
        """Whether the next step does without its rewards, where the language model's first
        candidate has this probability."""
        return self.config.skips_reward(len(self.tokens), likeliest)

    @property
    def k(self) -> int:
        """Candidates per step: the config's k, or 1 where no other candidate could be chosen."""
        wants_all = self.guided or self.config.temperature is not None
        return self.config.k if wants_all or self.config.return_candidates else 1

    @property
    def pages(self) -> list[int]:
        """The pages of the language model's group."""
        return self.texts[0].pages

    @property
    def max_length(self) -> int:
        """Tokens that it may come to hold, prompt included."""
        return len(self.prompt) + self.config.max_new_tokens

    @property
    def scheduled_len(self) -> int:
        """Tokens that it holds once every burst in flight is read."""
        return len(self.ids) + self.in_flight

    @property
    def remaining(self) -> int:
        """Tokens that the device may yet be asked for."""
        return self.max_length - self.scheduled_len

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in (Status.FINISHED, Status.FAILED, Status.CANCELLED)

    def noise(self, steps: int) -> Tensor:
        """The draws of the next steps, [steps, k] f32."""
        if self.config.temperature is None:
            return torch.zeros(steps, self.k, dtype=torch.float32, device="cpu")
        if self._noise is None:
            self._noise = self.config.noise()
        start = len(self.tokens) + self.in_flight
        return self._noise[start : start + steps]

    def fail(self, error: BaseException) -> None:
        """End the request with an error, unless it has ended."""
        if not self.finished:
            self.status, self.error = Status.FAILED, error

    def push(
        self,
        token: int,
        logprob: float,
        reward: float,
        score: float,
        candidates: tuple[Candidate, ...] | None = None,
        by_name: dict[str, float] | None = None,
    ) -> None:
        """Take the next token, unless the request has ended: the device may have run on."""
        if self.finished:
            return
        for text in self.texts.values():
            text.ids.append(token)
        if token in self.stop_tokens:
            self.finish_reason = "stop"
        elif token in self.end_tokens:
            self.finish_reason = "eos"
        elif len(self.ids) == self.max_length:
            self.finish_reason = "length"
        piece = None
        if self.text is not None:
            self.text.push(token, last=self.finish_reason is not None)
            if self.text.stopped:
                self.finish_reason = "stop"
            piece = self.text.take(last=self.finish_reason is not None)
        if self.finish_reason is not None:
            self.status = Status.FINISHED
        cached = None if self.tokens else self.cached_tokens
        choice = (token, piece, logprob, reward, score, self.finish_reason)
        self.tokens.append(Token(*choice, candidates, by_name, cached))

    def take(self) -> list[Token]:
        """The tokens that came since the last call."""
        new = self.tokens[self._streamed :]
        self._streamed += len(new)
        return new

    def generation(self) -> Generation:
        """The result of a finished request."""
        assert self.finish_reason is not None
        return Generation(
            token_ids=[token.token_id for token in self.tokens],
            text=None if self.text is None else self.text.text,
            logprobs=[token.logprob for token in self.tokens],
            rewards=[token.reward for token in self.tokens],
            scores=[token.score for token in self.tokens],
            finish_reason=self.finish_reason,
            prompt_token_ids=self.prompt,
            candidates=(
                [token.candidates or () for token in self.tokens]
                if self.config.return_candidates
                else None
            ),
            rewards_by_name=rewards_by_name(self.tokens),
            skipped=self._skipped_share() if self.skips else None,
            drafted=self.drafted,
            accepted=self.accepted,
        )

    def _skipped_share(self) -> float:
        return sum(token.reward != token.reward for token in self.tokens) / len(self.tokens)
