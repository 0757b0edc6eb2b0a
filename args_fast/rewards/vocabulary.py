"""Rewards that one row of a model gives for every candidate at once: a second language model's
log-probabilities, or one reward per token of the vocabulary."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast.errors import LengthError, PairMismatchError, UnsupportedModelError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.pages import PagedText
from args_fast.kvcache.storage import GroupCache
from args_fast.models.backbone import Backbone, check_eval, check_length
from args_fast.models.branches import Branches
from args_fast.models.compact import weights_of
from args_fast.models.proof import prove
from args_fast.rewards.base import Candidates, Judge, Reading, Reward


class Vocabulary(Reward):
    """A causal model whose output at a text's last token is the reward of each next token.

    Reading one row of it, the text's last token, gives the rewards of all candidates.

    Args:
        model: a causal model of transformers that shares the language model's ids, with one value
            for each token of the vocabulary at every position: a ``*ForTokenClassification``, say.
        name: by which requests name it; the model's folder or class by default.

    Raises:
        UnsupportedModelError: the engine cannot drive the model, or its output is of another shape.
    """

    pending = 1

    def __init__(self, model: PreTrainedModel, *, name: str | None = None) -> None:
        if isinstance(model, nn.Module):
            model.eval()  # dropout would make every reward a lottery
        folder = Path(getattr(model, "name_or_path", None) or "").name
        self.name = name or folder or type(model).__name__
        self.model = model
        self.backbone = Backbone(model, "reward model")
        self.device = self.backbone.device
        self.layout = self.backbone.layout

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self.device.type != lm.device.type:
            raise PairMismatchError(
                f"the language model is on {lm.device} and the reward model on {self.device}; move "
                "both to one device, or to two CUDA devices"
            )
        values = min(self._values_per_token(), self.backbone.vocabulary)
        if values < lm.vocabulary:
            raise PairMismatchError(
                f"the language model can choose among {lm.vocabulary} ids, but the reward "
                f"{self.name!r} knows {values}; use a model with the same vocabulary"
            )
        self.backbone.fused = lm.fused
        prove(self.backbone, logits=True)

    @torch.inference_mode()
    def _values_per_token(self) -> int:
        """How many values the model gives at each position of a text."""
        text = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        logits = getattr(self.model(input_ids=text, use_cache=False), "logits", None)
        if logits is None or logits.dim() != 3 or logits.shape[:2] != (1, 2):
            shape = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
            raise UnsupportedModelError(
                f"the reward {self.name!r} ({type(self.model).__name__}) gives {shape} for a text "
                "of 2 tokens; it must give one value for each token of the vocabulary at every "
                "position. For one value per text use rewards.Classifier"
            )
        return logits.shape[2]

    def check(self, request: Reading, new_tokens: int) -> None:
        check_eval(self.backbone)
        check_length(self.backbone, len(request.prompt), new_tokens)

    def fill(self, store: GroupCache, text: PagedText, start: int, end: int) -> None:
        """The last id is read by the first step."""
        end = min(end, len(text.ids) - 1)
        self.backbone.prefill(store.cache, text.ids[start:end], text.pages, start)

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> Judge:
        assert store is not None
        return VocabularyJudge(self, memory, store)

    @torch.inference_mode()
    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        length = len(request.prompt) + len(continuation)
        if length > self.backbone.max_length:
            raise LengthError(
                f"the text has {length} tokens; the reward {self.name!r} takes "
                f"{self.backbone.max_length:.0f}. Shorten it."
            )
        text = torch.tensor([[*request.prompt, *continuation]], device=self.device)
        logits = self.model(input_ids=text, use_cache=False).logits[0]
        start = len(request.prompt) - 1
        ids = text[0, start + 1 :, None]
        return self.of_logits(logits[start:-1]).gather(1, ids)[:, 0].tolist()

    def weights(self) -> Iterable[Tensor]:
        return weights_of(self.model)

    def compile(self, mode: str) -> None:
        self.backbone.compile(mode)
        prove(self.backbone, logits=True, branches=1)

    def of_logits(self, logits: Tensor) -> Tensor:
        """logits [..., V] -> the reward of each token [..., V] f32."""
        return logits.float()


class Autoregressive(Vocabulary):
    """r([x, v]) = log p_r(v | x) of a second language model, over its whole vocabulary.

    Args:
        model: a causal language model of transformers that shares the language model's ids.
        name: by which requests name it; the model's folder or class by default.
    """

    def of_logits(self, logits: Tensor) -> Tensor:
        return logits.float().log_softmax(dim=-1)


class VocabularyJudge(Judge):
    """One row per request, the last token's; its output holds every candidate's reward."""

    def __init__(self, reward: Vocabulary, memory: BatchMemory, store: GroupCache) -> None:
        super().__init__()
        self._reward = reward
        self._memory = memory
        self._group = store.group
        B, device = memory.B, reward.device
        self._branches = Branches.within(memory, store.name, store.cache, 1, group=store.group)
        self._last = memory.tensor(f"{store.name} last", torch.int64, B, 1, device=device)
        self._only_row = torch.zeros(B, dtype=torch.int64, device=device)

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:
        if resumed:
            return
        texts = [request.texts[self._group].ids for request in requests]
        self._memory.send(self._branches.lengths, [len(ids) - 1 for ids in texts], 0)
        self._memory.send(self._last, [[ids[-1]] for ids in texts], [0])

    def read(self, candidates: Candidates) -> None:
        self._ids = candidates.ids.to(self._reward.device, non_blocking=True)
        branches = self._branches
        logits = self._reward.backbone.logits(self._last, branches.positions(), branches)[:, -1]
        branches.commit(self._only_row)
        self._rewards = self._reward.of_logits(logits).gather(1, self._ids)

    def rewards(self) -> Tensor:
        return self._rewards.to(self._memory.device, non_blocking=True)

    def keep(self, branch: Tensor) -> None:
        index = branch.to(self._reward.device, non_blocking=True)[:, None]
        self._last.copy_(self._ids.gather(1, index))
