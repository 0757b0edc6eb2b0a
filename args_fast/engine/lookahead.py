"""Propose: how the language model comes to its k candidates, and whether it looks ahead.

In the plain order it reads the token that was chosen last, and then its candidates are judged. With
lookahead it reads all k candidates, as branches of its own, while they are judged; the choice picks
one of k rows of logits that are there already (design, section 3).
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from args_fast.engine.narrowing import Narrowing
from args_fast.engine.request import Request
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import PagedCache
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches
from args_fast.ops import cpp
from args_fast.ops.decoder_layers import backend
from args_fast.rewards.base import LM_GROUP, Candidates, Judge, Reward

# Rows at which a matrix product's arithmetic takes as long as reading its weights, which is
# peak / bandwidth * bytes per weight / 2, by data sheet: compute capability -> bytes per weight.
# A100-80GB: 312 and 19.5 TFLOP/s, 2.04 TB/s. H200: 989 and 67 TFLOP/s, 4.8 TB/s; an H100 has less
# bandwidth, so more rows.
RIDGE = {(8, 0): {2: 153, 4: 19}, (9, 0): {2: 206, 4: 28}}
# Up to this part of the ridge k rows cost about what one costs, on one bus with the other model.
SHARED = 0.25

# Rows more, per byte of a weight, that take the fused layers of the CPU as long as a reading of the
# weights, by the kernels that run: measured with SmolLM2-135M on two cores, of an AMD EPYC (Zen 5)
# from passes of 1, 10 and 20 rows, of an Intel Xeon (whose tiles are "amx") as the k up to which a
# joined pass is faster. And how many times as many where weights are bfloat16.
CPU_ROWS = {"amx": 5.0, "avx512bf16": 3.0, "avx512": 3.0, "avx2": 1.7}
MORE_IN_BFLOAT16 = {"amx": 3, "avx512bf16": 2}


def lookahead_rows(lm: Backbone, devices: set[torch.device], lookahead: bool | str) -> float:
    """The largest B * k with which the language model looks ahead. "auto" is computed, not
    measured: never on the CPU, where a row more is a row more of work; up to the ridge where the
    rewards have devices of their own (``devices``); up to a part of it where they share one."""
    if lookahead != "auto":
        return math.inf if lookahead else 0
    ridge = _ridge(lm) if lm.device.type == "cuda" else 0
    return SHARED * ridge if lm.device in devices else ridge


def joined_rows(lm: Backbone, rewards: Iterable[Reward], lookahead: bool | str) -> float:
    """The same where one of the rewards shares the pass, which then has 2 B k rows in place of B
    and B k, in the part of the layers in which the reward has rows of its own, by which what is
    returned is divided (``Reward.joined_share``).

    "auto": on CUDA up to half the ridge. On the CPU one reading of the weights is saved, and
    B (k share - 1) rows are more: as many as take no longer than the reading; where the layers are
    not fused, none. A row counts for more after a long prefix, to which the language model's k rows
    attend in place of one (``Reward.attention_per_token``)."""
    if not any(reward.joins for reward in rewards):
        return 0
    if lookahead != "auto":
        return math.inf if lookahead else 0
    if lm.device.type == "cuda":
        return _ridge(lm) / 2
    layers = lm.fused_layers()
    if layers is None or backend("cpu") != "cpp":
        return 0
    kernels, kind = cpp.kernels(), layers.matrix.dtype
    more = MORE_IN_BFLOAT16.get(kernels, 1) if lm.layout.dtype == torch.bfloat16 else 1
    rows = CPU_ROWS.get(kernels, 0) * kind.itemsize * more
    return 1 + rows if rows else 0


def _ridge(lm: Backbone) -> float:
    capability = torch.cuda.get_device_capability(lm.device)
    known = [machine for machine in RIDGE if machine <= capability]
    return RIDGE[max(known)].get(lm.layout.dtype.itemsize, 0) if known else 0


class LastToken:
    """The plain order: the language model reads the last token of every request.

    Args:
        lm, cache: the language model and its K/V.
        memory: of the batch.
        narrowing: which of the k most likely tokens are candidates.
    """

    def __init__(
        self, lm: Backbone, cache: PagedCache, memory: BatchMemory, narrowing: Narrowing
    ) -> None:
        self._lm = lm
        self._memory = memory
        self._narrowing = narrowing
        self._last = Branches.within(memory, "lm", cache, 1, group=LM_GROUP)
        self._only_row = torch.zeros(memory.B, dtype=torch.int64, device=lm.device)
        self._requests: Sequence[Request] = ()
        self.errors: dict[int, Exception] = {}  # of logits processors, by row

    def load(self, requests: Sequence[Request], *, resumed: bool) -> None:
        """The rows of the batch are these requests; the language model has yet to see their last
        tokens. ``resumed``: the device knows where each of them is."""
        if not resumed:
            lengths = [len(request.ids) - 1 for request in requests]
            self._memory.send(self._last.lengths, lengths, 0)
        self._requests = requests
        self.errors.clear()

    def begin(self, token: Tensor) -> None:
        """What has to be done once before the first step after ``load``: nothing."""

    def propose(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """token [B, 1], the last ones -> logprobs and ids [B, k] of the candidates; those that
        were dropped have logprob -inf."""
        logits = self._lm.logits(token, None, self._last)[:, -1]
        self._last.commit(self._only_row)
        return self._top_k(logits)

    def read_ahead(self, ids: Tensor, *, hidden: bool = False) -> Tensor | None:
        """Read the candidates while they are judged: the plain order does not."""
        return None

    def read_ahead_with(self, candidates: Candidates, judge: Judge) -> None:
        """Read the candidates in one pass with a judge: the plain order does not."""

    def accept(self, branch: Tensor) -> None:
        """Candidate branch[b] was chosen."""

    def _top_k(self, logits: Tensor, token: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, V] -> the candidates. ``token`` [B] follows the ids of each request, if it is
        not among them yet."""
        if self._processes_logits:
            logits = self._processed(logits, None if token is None else token.tolist())
        return self._narrowing.top_k(logits, self._memory.k)

    @property
    def _processes_logits(self) -> bool:
        return any(request.process_logits is not None for request in self._requests)

    def _processed(self, logits: Tensor, tokens: list[int] | None) -> Tensor:
        rows = list(logits.float())
        for i, request in enumerate(self._requests):
            if request.process_logits is not None:
                ids = request.ids if tokens is None else [*request.ids, tokens[i]]
                try:
                    rows[i] = request.process_logits(ids, rows[i])
                except Exception as error:
                    self.errors[i] = error
        return torch.stack(rows)


class Lookahead(LastToken):
    """The language model reads all k candidates while they are judged."""

    def __init__(
        self, lm: Backbone, cache: PagedCache, memory: BatchMemory, narrowing: Narrowing
    ) -> None:
        super().__init__(lm, cache, memory, narrowing)
        B, k = memory.B, memory.k
        self._logprobs = memory.tensor("logprobs", torch.float32, B, k)
        self._ids = memory.tensor("ids", torch.int64, B, k)
        self._ahead = Branches.within(
            memory, "lm candidates", cache, k, group=LM_GROUP, lengths=self._last.lengths
        )
        self._rows_are_hidden = False

    def begin(self, token: Tensor) -> None:
        """Before the first step the last token is read as in the plain order."""
        self._keep(super().propose(token))

    def propose(self, token: Tensor) -> tuple[Tensor, Tensor]:
        return self._logprobs, self._ids

    def read_ahead(self, ids: Tensor, *, hidden: bool = False) -> Tensor | None:
        """ids [B, k] -> their hidden states [B, k, H] where they are asked for."""
        if not hidden:
            self._rows = self._lm.logits(ids, None, self._ahead)
            return None
        if self._lm.has_plain_head:  # the winner's logits are all that is needed
            self._rows = self._lm.hidden(ids, None, self._ahead)
            self._rows_are_hidden = True
            return self._rows
        states, self._rows = self._lm.hidden_and_logits(ids, None, self._ahead)
        return states

    def read_ahead_with(self, candidates: Candidates, judge: Judge) -> None:
        self._rows = judge.read_with(candidates, self._ahead)
        self._rows_are_hidden = True

    def accept(self, branch: Tensor) -> None:
        self._ahead.commit(branch)
        index = branch[:, None, None].expand(-1, 1, self._rows.shape[2])
        row = self._rows.gather(1, index)[:, 0]
        token = self._ids.gather(1, branch[:, None])[:, 0] if self._processes_logits else None
        self._keep(self._top_k(self._lm.head(row) if self._rows_are_hidden else row, token))

    def _keep(self, candidates: tuple[Tensor, Tensor]) -> None:
        self._logprobs.copy_(candidates[0])
        self._ids.copy_(candidates[1])
