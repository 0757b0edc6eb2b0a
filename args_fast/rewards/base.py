"""What the engine knows of a reward: the protocol that every kind enters by.

A ``Reward`` is made once and lives with the engine; a ``Judge`` is a reward at work on one batch.
The engine calls, in this order:

    attach                            once
    check                             for each request, before any work
    open, fill ... close              for each request, as it is admitted, prefilled and released
    judge                             for each shape of batch
    load                              before each burst
    read, choose                      in each step

Where a draft is verified, a judge reads the candidates of several positions at once:

    draft_judge                       for each shape of batch and number of positions
    load, read, rewards, keep_rows    for each draft

``docs/rewards.md`` has a table of what each kind answers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from args_fast import ops
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.pages import PagedText
from args_fast.kvcache.storage import CacheLayout, GroupCache, PagedCache
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches

LM_GROUP = 0  # the cache group of readers that see the language model's ids


class Reading(Protocol):
    """What a reward sees of a request."""

    prompt: list[int]
    ids: list[int]  # prompt and response
    prompt_text: str | None  # as it was given; None for ids
    weights: dict[str, float]  # of the rewards that it is guided by
    messages: list[dict] | None  # where the prompt was a conversation
    end_tokens: frozenset[int]  # ids that end it
    texts: dict[int, PagedText]  # by cache group
    lag: int  # tokens at its end that are not in the rewards' K/V

    @property
    def skips(self) -> bool: ...  # whether some steps do without the reward

    def skips_reward(self, likeliest: float) -> bool: ...

    @property
    def response(self) -> list[int]: ...


@dataclass(frozen=True)
class Candidates:
    """What a step chooses from, and how.

    Attributes:
        ids: [B, k] i64, most likely first.
        logprobs: [B, k] f32, log p(v | x) over the whole vocabulary.
        w, temperature: [B] f32; temperature 1 with noise 0 is the argmax.
        noise: [B, k] f32, Gumbel noise; -inf where a request has no such candidate.
        hidden: [B, k, H], the language model's last hidden state of each candidate, for rewards
            with ``reads_hidden``.
        kept: [B, k] bool, False where a candidate was dropped (top_p, min_p, or a token that the
            reward does not know): the most likely one stands there again, with noise -inf; None
            where all are kept.
    """

    ids: Tensor
    logprobs: Tensor
    w: Tensor
    temperature: Tensor
    noise: Tensor
    hidden: Tensor | None = None
    kept: Tensor | None = None

    def to(self, device: torch.device) -> "Candidates":
        """The same on another device; itself on its own."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self,
            **{n: x.to(device, non_blocking=True) for n, x in moved.items() if x is not None},
        )


@dataclass(frozen=True)
class Choice:
    """The candidate that each request takes.

    Attributes:
        branch: [B] i64, its index.
        reward, score: [B] f32; a NaN score marks a row that has no choice.
        rewards: [B, k] f32, of every candidate where the step was asked for them.
        by_name: [B, n] f32, the branch's raw reward of each of several rewards.
    """

    branch: Tensor
    reward: Tensor
    score: Tensor
    rewards: Tensor | None = None
    by_name: Tensor | None = None


class Judge(ABC):
    """A reward at work on one batch."""

    def __init__(self) -> None:
        self.errors: dict[int, Exception] = {}  # what kept single rows from a reward, by row

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:  # noqa: B027
        """Take note of the rows of the batch, before each burst. ``resumed``: they are the rows of
        the last burst, and what a device knows of them is up to date."""

    @abstractmethod
    def read(self, candidates: Candidates) -> None:
        """Begin to judge. Nothing is returned, so that work on a device may overlap."""

    def read_with(self, candidates: Candidates, lm_rows: Branches) -> Tensor:
        """Begin to judge, in one pass with the language model (``Reward.joins``).

        Args:
            candidates: on the language model's device.
            lm_rows: where the language model's keys and values of the candidates go.

        Returns:
            The language model's last hidden state of each candidate [B, k, H].
        """
        raise NotImplementedError

    @abstractmethod
    def rewards(self) -> Tensor:
        """r([x, v]) [B, k] f32 of the candidates read last, on the language model's device. NaN or
        infinite where a reward is not known; that row's request ends with an error."""

    def keep(self, branch: Tensor) -> None:  # noqa: B027
        """Commit candidate branch[b] (i64) of each row: it is part of the prefix from now on."""

    def keep_rows(self, rows: Tensor, counts: Tensor) -> None:  # noqa: B027
        """Of a draft judge: commit the candidates rows[b] (i64 [B, positions]), as many as
        counts[b] says (i64 [B])."""

    def parts(self) -> Tensor | None:
        """[B, k, n] f32, the raw rewards that ``rewards`` added up; None where there is one."""
        return None

    def select(self, rewards: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor]:
        """ARGS' own choice from rewards [B, k]: branch, reward and score [B]."""
        return select(rewards, candidates)

    def choose(self, candidates: Candidates, *, detailed: bool) -> Choice:
        """Judge, choose and keep. ``detailed`` asks for ``Choice.rewards``. A judge that has a
        fused way to the same bits overrides this."""
        rewards = self.rewards()
        branch, reward, score = self.select(rewards, candidates)
        self.keep(branch)
        by_name = self.parts()
        if by_name is not None:
            index = branch[:, None, None].expand(-1, 1, by_name.shape[2])
            by_name = by_name.gather(1, index)[:, 0]
        return Choice(branch, reward, score, rewards if detailed else None, by_name)


class Reward(ABC):
    """One kind of reward, for all requests of an engine.

    Attributes:
        name: by which requests name it.
        device: where its work is done.
        on_host: every step asks the host, so a burst is one step and no graph is captured.
        reads_hidden: judges need ``Candidates.hidden``.
        own_ids: reads ids of its own, with pages and lengths of its own; False: the language
            model's ids, with the language model's page numbers.
        pending: ids at a text's end whose K/V is stored by the next step, not by ``fill``.
        rows_per_candidate: rows that a candidate takes in a forward pass that ``draft_judge``
            makes; None for a reward that cannot judge drafts.
        layout: what one token occupies in its K/V cache; None for a reward without one.
    """

    name: str = "reward"
    device: torch.device = torch.device("cpu")
    on_host: bool = False
    reads_hidden: bool = False
    own_ids: bool = False
    pending: int = 0
    rows_per_candidate: int | None = None
    layout: CacheLayout | None = None

    @property
    def joins(self) -> bool:
        """Whether judges can read the candidates in the pass in which the language model does."""
        return False

    @property
    def joined_share(self) -> float:
        """The part of the layers in which that pass has rows of this reward's own."""
        return 1.0

    @property
    def attention_per_token(self) -> float:
        """What a token of the prefix adds to the work of a row of that pass, as a part of it."""
        return 0.0

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:  # noqa: B027
        """Check that this reward can judge the language model's candidates. Raises ArgsError."""

    def check(self, request: Reading, new_tokens: int) -> None:  # noqa: B027
        """Raises ArgsError where a request could not be judged to its end: LengthError, say."""

    def text(self, request: Reading) -> list[int]:
        """The ids that this reward reads of a request before its first candidate (``own_ids``)."""
        return list(request.ids)

    def open(self, request: Reading) -> None:  # noqa: B027
        """A request is admitted. What is raised ends that request alone."""

    def fill(  # noqa: B027
        self, store: GroupCache, text: PagedText, start: int, end: int
    ) -> None:
        """Store the K/V of ids start ... end - 1 in the pages of the text."""

    def fill_with(
        self, lm: PagedCache, store: GroupCache, text: PagedText, start: int, end: int
    ) -> bool:
        """Store these for the language model too, in one pass. False, and nothing is stored, where
        each had better fill by itself."""
        return False

    def close(self, request: Reading) -> None:  # noqa: B027
        """A request gives its memory back; it may be opened again later, with more tokens."""

    @abstractmethod
    def judge(self, memory: BatchMemory, store: GroupCache | None) -> Judge:
        """A judge for batches of the memory's present shape; ``store`` is where this reward's K/V
        is, if it has a layout."""

    def draft_judge(self, memory: BatchMemory, store: GroupCache | None, positions: int) -> Judge:
        """A judge that reads k candidates at each of several positions of a draft at once, in the
        order of ``siblings_along``: ``Candidates.ids`` and ``rewards`` are [B, positions * k]. Only
        asked where ``rows_per_candidate`` is a number."""
        raise NotImplementedError(f"the reward {self.name!r} does not judge drafts")

    @abstractmethod
    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        """r([x, y]) after every token of a continuation: without a cache, for finished texts."""

    def reward_of(self, request: Reading, continuation: Sequence[int]) -> float:
        """r([x, y]) of a finished text: the last of ``rewards_along``. A reward that reads a text
        for every token there reads one here."""
        return self.rewards_along(request, continuation)[-1]

    def known_ids(self) -> Tensor | None:
        """[V] bool, on the host: which of the language model's ids mean anything to this reward;
        the others are not candidates. None for all."""
        return None

    def weights(self) -> Iterable[Tensor]:
        """Parameters that a captured graph would hold on to."""
        return ()

    def compile(self, mode: str) -> None:  # noqa: B027
        """Run judges through torch.compile from now on, where there is something to compile."""


def select(rewards: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """ARGS' own choice (eq. 2 and 3 of the paper) from rewards [B, k]: branch, reward and score
    [B], as ``ops.select`` gives them."""
    unit_head = torch.ones(1, dtype=rewards.dtype, device=rewards.device)
    return ops.select(
        rewards[..., None],
        unit_head,
        None,
        candidates.logprobs,
        candidates.w,
        candidates.temperature,
        candidates.noise,
    )
