"""The device's side of requests that are decoded together: what is sent, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from args_fast.engine.lookahead import LastToken, Lookahead
from args_fast.engine.narrowing import Narrowing
from args_fast.engine.request import Request
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import PagedCache
from args_fast.kvcache.transfer import fetch, send_into
from args_fast.models.backbone import Backbone
from args_fast.ops.record import record
from args_fast.rewards.base import Candidates, Choice, Judge
from args_fast.rewards.panel import Key, Panel


@dataclass(frozen=True)
class Shape:
    """What decides which tensors a batch has, and so which captured graph a step is.

    Attributes:
        B, k: requests (those that fill up the batch included) and candidates.
        pages: the width of each cache group's page table, by group.
        mixed: whether some requests have fewer than k candidates.
        narrowed: whether some requests have top_p or min_p.
        detailed: whether every candidate's reward is reported.
        drafted: tokens of the drafts that a step verifies; 0 for a step without.
        ahead: whether the language model reads the candidates while they are judged.
    """

    B: int
    k: int
    pages: tuple[tuple[int, int], ...]
    mixed: bool
    narrowed: bool
    detailed: bool
    drafted: int = 0
    ahead: bool = False


@dataclass(frozen=True)
class Arrival:
    """What a burst brought, on the host.

    Attributes:
        tokens: [B, S] i64.
        stats: [B, S, 3] f32, logprob, reward and score of each token.
        by_name: [B, S, n] f32, its raw rewards where there are several.
        ids, details: [B, S, k] i64 and [B, S, k, 2] f32: every candidate, with its logprob and
            reward, where a request asks for them.
    """

    tokens: Tensor
    stats: Tensor
    by_name: Tensor | None
    ids: Tensor | None
    details: Tensor | None


class Batch:
    """B requests for bursts of up to S steps. Nothing in it grows or moves.

    Args:
        shape: of the batch.
        memory: of the runner, in that shape.
        lm, cache: the language model and its K/V.
        panel, key: the rewards, and which of them judge these requests.
        steps: S.

    Attributes:
        token: [B, 1] i64, the last token.
        w, temperature: [B] f32; temperature 1 with noise 0 is the argmax.
        noise: [B, S, k] f32, the draws of the burst; -inf where a request has no such candidate.
        draws: [B, k] f32, those of this step.
        step_index: [1] i64, steps of the burst that are done.
        tokens, stats, by_name, ids, details: as in ``Arrival``, on the device.
    """

    def __init__(
        self,
        shape: Shape,
        memory: BatchMemory,
        lm: Backbone,
        cache: PagedCache,
        panel: Panel,
        key: Key,
        *,
        steps: int,
    ) -> None:
        f32, i64, B, k = torch.float32, torch.int64, shape.B, shape.k
        self.detailed = shape.detailed
        self.token = memory.tensor("token", i64, B, 1)
        self.w = memory.tensor("w", f32, B)
        self.temperature = memory.tensor("temperature", f32, B)
        self.noise = memory.tensor("noise", f32, B, steps, k)
        self.draws = memory.tensor("draws", f32, B, k)
        self.step_index = memory.tensor("step index", i64, 1)
        self.tokens = memory.tensor("tokens", i64, B, steps)
        self.stats = memory.tensor("stats", f32, B, steps, 3)
        names = panel.reported(key)
        self.by_name = memory.tensor("by name", f32, B, steps, len(names)) if names else None
        self.ids = memory.tensor("candidates", i64, B, steps, k) if shape.detailed else None
        self.details = memory.tensor("details", f32, B, steps, k, 2) if shape.detailed else None
        self._memory = memory
        self.judge_reads_hidden = any(reward.reads_hidden for reward in panel.named(key))
        self.reads_ahead = shape.ahead or self.judge_reads_hidden
        # Several judges share the candidates, and none of them the language model's pass.
        self.joined = shape.ahead and panel.joins(key)
        propose = Lookahead if self.reads_ahead else LastToken
        self.narrowing = Narrowing(
            memory, mixed=shape.mixed, by_probability=shape.narrowed, known=panel.known_ids(key)
        )
        self.proposer: LastToken = propose(lm, cache, memory, self.narrowing)
        self.judge: Judge = panel.judge(key, memory)

    # ---- to the device -------------------------------------------------------------------------

    def load(self, requests: Sequence[Request], steps: int, *, resumed: bool) -> None:
        """Write what the next steps need.

        Args:
            requests: the rows; further rows fill up the batch.
            steps: of the burst.
            resumed: the rows and all that the device knows of them are those of the last burst.
        """
        groups = requests[0].texts
        self._memory.send_tables({g: [r.texts[g].pages for r in requests] for g in groups})
        self.step_index.zero_()
        if not resumed or any(r.config.temperature is not None for r in requests):
            send_into(self.noise, self._noise_of(requests, steps))
        self.draws.copy_(self.noise[:, 0])
        if not resumed:
            self._load_rows(requests)
        self.proposer.load(requests, resumed=resumed)
        self.judge.load(requests, resumed=resumed)

    def _noise_of(self, requests: Sequence[Request], steps: int) -> Tensor:
        noise = torch.zeros(self.noise.shape, dtype=torch.float32, device="cpu")
        for row, request in zip(noise, requests, strict=False):
            row[:, request.k :] = -torch.inf
            row[:steps, : request.k] = request.noise(steps)
        return noise

    def _load_rows(self, requests: Sequence[Request]) -> None:
        send = self._memory.send
        send(self.token, [[r.ids[-1]] for r in requests], [0])
        send(self.w, [float(r.config.w) for r in requests], 0.0)
        send(self.temperature, [r.config.temperature or 1.0 for r in requests], 1.0)
        self.narrowing.load(requests)

    # ---- from the device -----------------------------------------------------------------------

    @property
    def errors(self) -> dict[int, Exception]:
        """What the host met in this burst, by row: of logits processors and rewards."""
        return {**self.judge.errors, **self.proposer.errors}

    def write(self, candidates: Candidates, choice: Choice) -> None:
        """Note this step's choice, and count the step."""
        if self.by_name is not None and choice.by_name is not None:
            self.by_name.index_copy_(1, self.step_index, choice.by_name[:, None])
        if self.ids is not None and self.details is not None and choice.rewards is not None:
            self.ids.index_copy_(1, self.step_index, candidates.ids[:, None])
            logprobs = candidates.logprobs
            if candidates.kept is not None:
                logprobs = logprobs.masked_fill(~candidates.kept, -torch.inf)
            details = torch.stack([logprobs, choice.rewards], dim=2)
            self.details.index_copy_(1, self.step_index, details[:, None])
        record(
            candidates.ids,
            candidates.logprobs,
            choice.branch,
            choice.reward,
            choice.score,
            self.noise,
            self.step_index,
            self.token,
            self.tokens,
            self.stats,
            self.draws,
        )

    def fetch(self) -> Arrival:
        """Copies on the host, complete once the device has come so far."""
        return Arrival(
            fetch(self.tokens),
            fetch(self.stats),
            None if self.by_name is None else fetch(self.by_name),
            None if self.ids is None else fetch(self.ids),
            None if self.details is None else fetch(self.details),
        )
