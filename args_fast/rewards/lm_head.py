"""A head on the language model's own hidden state: one pass over one set of weights per token."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from args_fast import ops
from args_fast.errors import LengthError, RewardHeadError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import GroupCache
from args_fast.models.backbone import Backbone, check_eval
from args_fast.rewards.base import Candidates, Choice, Judge, Reading, Reward
from args_fast.rewards.heads import Labels, RewardHead, find_head


class Head(Reward):
    """r = a head of the language model's last hidden state at the candidate.

    The language model reads the k candidates as branches; their hidden states give the rewards and,
    for the winner alone, the next logits.

    Args:
        head: a linear layer or an MLP, or a safetensors file with one weight matrix and a bias
            perhaps. It is moved to the language model's device and type.
        name: by which requests name it.
        labels: of a head with several outputs, the one that is the reward, or the label weights.
    """

    reads_hidden = True
    rows_per_candidate = 1  # of the language model's pass

    def __init__(
        self, head: nn.Module | str | Path, *, name: str = "head", labels: Labels = None
    ) -> None:
        if not isinstance(head, (nn.Module, str, Path)):
            raise RewardHeadError(
                f"head is a {type(head).__name__}; it must be a module or a safetensors file"
            )
        self.name = name
        self._given = Path(head) if isinstance(head, str) else head
        self._labels = labels

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if isinstance(self._given, nn.Module):
            parameter = next(lm.model.parameters())
            self._given.to(device=parameter.device, dtype=parameter.dtype).eval()
        self.device = lm.device
        self.lm = lm
        self.head: RewardHead = find_head(lm.model, self._given, self._labels)

    def check(self, request: Reading, new_tokens: int) -> None:
        check_eval(self.lm)

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> "HeadJudge":
        return HeadJudge(self)

    def draft_judge(
        self, memory: BatchMemory, store: GroupCache | None, positions: int
    ) -> "HeadJudge":
        return HeadJudge(self)

    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        ids = [*request.prompt, *continuation]
        if len(ids) > self.lm.max_length:
            raise LengthError(
                f"the text has {len(ids)} tokens; the language model takes "
                f"{self.lm.max_length:.0f}. Shorten it."
            )
        text = torch.tensor([ids], device=self.device)
        hidden = self.lm.model.base_model(input_ids=text, use_cache=False).last_hidden_state[0]
        return self.head.rewards(hidden[len(request.prompt) :]).tolist()

    def weights(self) -> Iterable[Tensor]:
        return self.head.module.parameters()


class HeadJudge(Judge):
    """Reads what the language model has computed already."""

    def __init__(self, reward: Head) -> None:
        super().__init__()
        self._reward = reward

    def read(self, candidates: Candidates) -> None:
        assert candidates.hidden is not None
        self._hidden = candidates.hidden

    def rewards(self) -> Tensor:
        return self._reward.head.rewards(self._hidden)

    def choose(self, candidates: Candidates, *, detailed: bool) -> Choice:
        head = self._reward.head.fused(self._hidden)
        if detailed or head is None:
            return super().choose(candidates, detailed=detailed)
        c = candidates
        return Choice(*ops.select(self._hidden, *head, c.logprobs, c.w, c.temperature, c.noise))
