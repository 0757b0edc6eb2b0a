"""Drafts of a small language model with the same tokenizer."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from args_fast import ops
from args_fast.config import DecodingConfig
from args_fast.drafting.base import Drafts
from args_fast.kvcache.storage import PagedCache, pages_for
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches
from args_fast.models.compact import parameter_count
from args_fast.models.proof import prove


class SmallLM(Drafts):
    """A causal language model that reads the same ids as the one whose tokens it guesses.

    Each request has a K/V cache of its own in it, of the request's length, outside the engine's
    ``cache_bytes``.

    Args:
        model: of transformers; put in eval mode.
        cost: of one of its tokens, in passes of the language model over one row; None for the ratio
            of their parameters.

    Raises:
        UnsupportedModelError, ProofError: the engine cannot drive the model.
    """

    name = "model"

    def __init__(self, model: PreTrainedModel, cost: float | None = None) -> None:
        if isinstance(model, torch.nn.Module):
            model.eval()
        self.backbone = Backbone(model, "draft model")
        self._cost = cost
        prove(self.backbone, logits=True)

    def attach(self, lm: Backbone) -> None:
        """Set the cost of drafting for the language model whose tokens are guessed."""
        sizes = [parameter_count(b.model) for b in (self.backbone, lm)]
        self.cost = sizes[0] / sizes[1] if self._cost is None else self._cost

    def open(self, prompt: Sequence[int], config: DecodingConfig) -> "SmallLMDrafter":
        return SmallLMDrafter(self.backbone, len(prompt), config)


class SmallLMDrafter:
    """Continues a text with a small model: its likeliest token, or the draw that the request's own
    noise makes of its candidates."""

    def __init__(self, lm: Backbone, prompt: int, config: DecodingConfig) -> None:
        self._lm = lm
        self._prompt = prompt
        self._config = config
        self._noise = None if config.temperature is None else config.noise()
        longest = int(min(lm.max_length, prompt + config.max_new_tokens))
        self._longest = longest
        self._pages = list(range(1, 1 + pages_for(longest)))
        self._cache = PagedCache(lm.layout, len(self._pages))
        layout = lm.layout
        shape = layout.layers, 1, 1, layout.kv_heads, layout.head_size
        k, v = (torch.empty(shape, dtype=layout.dtype, device=lm.device) for _ in range(2))
        table = torch.tensor([self._pages], dtype=torch.int32, device=lm.device)
        self._lengths = torch.zeros(1, dtype=torch.int32, device=lm.device)
        self._row = Branches(self._cache, table, self._lengths, k, v)
        self._only_row = torch.zeros(1, dtype=torch.int64, device=lm.device)
        self._read: list[int] = []  # ids whose K/V is stored, drafted ones among them

    def propose(self, ids: Sequence[int], at_most: int) -> list[int]:
        at_most = min(at_most, self._longest - len(ids))
        if at_most <= 0 or max(ids[len(self._read) :], default=0) >= self._lm.vocabulary:
            return []
        self._catch_up(ids)
        draft: list[int] = []
        token = ids[-1]
        while len(draft) < at_most:
            token = self._choose(self._logits(token), len(ids) + len(draft) - self._prompt)
            draft.append(token)
        return draft

    def _catch_up(self, ids: Sequence[int]) -> None:
        """Store the K/V of all ids but the last; what was drafted and not taken is cut off."""
        same = 0
        for token, read in zip(ids[:-1], self._read, strict=False):
            if token != read:
                break
            same += 1
        missing = list(ids[same : len(ids) - 1])
        if len(missing) > 1:
            self._lm.prefill(self._cache, missing, self._pages, same)
            same += len(missing)
            missing = []
        self._read = list(ids[:same])
        self._lengths.fill_(same)
        for token in missing:
            self._logits(token)

    def _logits(self, token: int) -> Tensor:
        """Read one token; logits [1, V] of the next."""
        row = self._row
        ids = torch.tensor([[token]], device=self._lm.device)
        logits = self._lm.logits(ids, row.positions(), row)[:, -1]
        row.commit(self._only_row)
        self._read.append(token)
        return logits

    def _choose(self, logits: Tensor, step: int) -> int:
        if self._noise is None:
            return int(logits.argmax())
        logprobs, ids = ops.topk_logprobs(logits, min(self._config.k, logits.shape[1]))
        noise = self._noise[step, : ids.shape[1]].to(logprobs.device)
        return int(ids[0, (logprobs[0] / self._config.temperature + noise).argmax()])
