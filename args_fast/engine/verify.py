"""One step of ARGS along drafts: guessed tokens are verified against ARGS' own choice.

    propose  the language model reads the last token and the draft: k candidates at each position,
             up to the first draft that is not among them           (chain.py)
    judge    the reward reads the candidates of all positions as one tail, in which the drafted one
             of each is what the later ones stand on
    choose   at every position; a draft is accepted while it is the choice before it
    commit   the accepted rows of every reader; the others lie past its length, where none reads

Every token is ARGS' own choice after the tokens before it, so drafts change no token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from args_fast.engine.batch import Arrival, Shape
from args_fast.engine.chain import DraftChain, Proposal
from args_fast.engine.narrowing import Narrowing
from args_fast.engine.request import Request
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import PagedCache
from args_fast.kvcache.transfer import fetch, send
from args_fast.models.backbone import Backbone
from args_fast.rewards.base import Candidates, Judge
from args_fast.rewards.panel import Key, Panel


class Verification:
    """B requests whose drafts, of one length, are verified in one step.

    Args:
        shape: of the batch.
        memory: of the runner, in that shape.
        lm, cache: the language model and its K/V.
        panel, key: the rewards, and which of them judge these requests.

    Attributes:
        counts: after ``run``, the number of tokens that each request gets. None at all where a
            value at its first position is not finite: it may stem from a later one.
    """

    def __init__(
        self,
        shape: Shape,
        memory: BatchMemory,
        lm: Backbone,
        cache: PagedCache,
        panel: Panel,
        key: Key,
    ) -> None:
        self.counts: list[int] = []
        self._shape = shape
        self._memory = memory
        self._device = lm.device
        self._panel = panel
        self._key = key
        self._on_hidden = any(reward.reads_hidden for reward in panel.named(key))
        self._narrowing = Narrowing(
            memory, mixed=shape.mixed, by_probability=shape.narrowed, known=panel.known_ids(key)
        )
        self._chain = DraftChain(lm, cache, memory, self._narrowing, shape.drafted)

    @property
    def errors(self) -> dict[int, Exception]:
        """What the host met, by row."""
        return self._chain.errors

    def run(self, requests: Sequence[Request], drafts: Sequence[list[int]]) -> Arrival:
        """Decode up to ``drafted`` + 1 tokens for each request."""
        self._send_tables(requests)
        self._w = send([float(r.config.w) for r in requests], torch.float32, self._device)
        temperatures = [r.config.temperature or 1.0 for r in requests]
        self._temperature = send(temperatures, torch.float32, self._device)
        proposal = self._chain.propose(requests, drafts, self._draws(requests))
        judge = self._panel.draft_judge(self._key, self._memory, proposal.ids.shape[1])
        self._send_tables(requests)  # the judge has tables of its own
        judge.load(requests, resumed=False)
        return self._choose(judge, proposal, self._judge(judge, proposal))

    def _send_tables(self, requests: Sequence[Request]) -> None:
        groups = requests[0].texts
        self._memory.send_tables({g: [r.texts[g].pages for r in requests] for g in groups})

    def _draws(self, requests: Sequence[Request]) -> Tensor:
        """The noise [B, drafted + 1, k], -inf where a request has no such candidate."""
        n, k = self._shape.drafted + 1, self._shape.k
        noise = torch.full((len(requests), n, k), -torch.inf, device="cpu")
        for row, request in zip(noise, requests, strict=True):
            row[:, : request.k] = request.noise(n)
        return noise.to(self._device)

    def _judge(self, judge: Judge, proposal: Proposal) -> Tensor:
        """The rewards of all candidates [B, n, k]. They are read with the drafted one first."""
        ids, logprobs, noise = (
            x.gather(2, proposal.order).flatten(1)
            for x in (proposal.ids, proposal.logprobs, proposal.noise)
        )
        hidden = None
        if self._on_hidden:
            hidden = self._chain.read_ahead(ids, proposal.ids.shape[1])
        judge.read(Candidates(ids, logprobs, self._w, self._temperature, noise, hidden))
        return judge.rewards().view(proposal.ids.shape).gather(2, proposal.order)

    def _choose(self, judge: Judge, proposal: Proposal, rewards: Tensor) -> Arrival:
        B, n, k = proposal.ids.shape
        chosen = judge.select(rewards.flatten(0, 1), self._at_every_position(proposal))
        branch, reward, score = (x.view(B, n) for x in chosen)
        tokens = proposal.at(branch, proposal.ids)
        logprob = proposal.at(branch, proposal.logprobs)
        counts = count_tokens(tokens, proposal)
        finite = ~torch.isnan(score if self._key else logprob)
        counts = torch.minimum(counts, finite.cumprod(1).sum(1))
        slot = proposal.at(branch, proposal.order)
        judge.keep_rows(slot + k * torch.arange(n, device=slot.device), counts)
        self.counts = [max(c, row in self.errors) for row, c in enumerate(fetch(counts).tolist())]
        detailed, parts = self._shape.detailed, judge.parts()
        return Arrival(
            fetch(tokens),
            fetch(torch.stack([logprob, reward, score], dim=2)),
            None if parts is None else fetch(_chosen_parts(parts, slot, k)),
            fetch(proposal.ids) if detailed else None,
            fetch(_details(proposal, rewards)) if detailed else None,
        )

    def _at_every_position(self, proposal: Proposal) -> Candidates:
        """The candidates of each position as a row of its own, [B * n, k]."""
        n = proposal.ids.shape[1]
        return Candidates(
            proposal.ids.flatten(0, 1),
            proposal.logprobs.flatten(0, 1),
            self._w.repeat_interleave(n),
            self._temperature.repeat_interleave(n),
            proposal.noise.flatten(0, 1),
        )


def count_tokens(tokens: Tensor, proposal: Proposal) -> Tensor:
    """[B], the number of tokens [B, n] that are ARGS' own: the choices that equal the draft, and
    the one after them."""
    agrees = (tokens[:, :-1] == proposal.drafts) & proposal.reached[:, 1:]
    return 1 + agrees.cumprod(1).sum(1)


def _chosen_parts(parts: Tensor, slot: Tensor, k: int) -> Tensor:
    """The raw rewards [B, n, m] of the choices: parts [B, n * k, m], slot [B, n]."""
    B, n = slot.shape
    index = slot[:, :, None, None].expand(-1, -1, 1, parts.shape[2])
    return parts.view(B, n, k, -1).gather(2, index)[:, :, 0]


def _details(proposal: Proposal, rewards: Tensor) -> Tensor:
    """[B, n, k, 2], logprob and reward of every candidate."""
    logprobs = proposal.logprobs
    if proposal.kept is not None:
        logprobs = logprobs.masked_fill(~proposal.kept, -torch.inf)
    return torch.stack([logprobs, rewards], dim=3)
