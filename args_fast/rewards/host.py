"""Rewards that are computed on the host, from text: the base of every kind that reads strings."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from args_fast.errors import ConfigError, RewardError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import GroupCache
from args_fast.models.backbone import Backbone
from args_fast.rewards.base import Candidates, Judge, Reading, Reward

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for part of a character


@dataclass(frozen=True)
class Text:
    """What a text reader reads: a prompt, the response to it so far, and the conversation that the
    prompt was, if it was one (as a tuple of (role, content))."""

    prompt: str
    response: str
    messages: tuple[tuple[str, str], ...] | None = None


class HostReward(Reward):
    """A reward of prompt and response as strings. A subclass gives ``values``.

    Special tokens are not part of a response (so an EOS candidate adds nothing), and neither is a
    character that is not complete yet.
    """

    on_host = True
    tokenizer: PreTrainedTokenizerBase

    @abstractmethod
    def values(self, texts: Sequence[Text]) -> list[float]:
        """One finite number per text; each text is given once. What is raised ends the requests
        that the texts belong to."""

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if tokenizer is None:
            raise ConfigError(
                f"the reward {self.name!r} reads text, and this decoder has no tokenizer; pass "
                "tokenizer="
            )
        self.tokenizer = tokenizer

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> "HostJudge":
        return HostJudge(self, memory)

    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        ids = list(continuation)
        texts = [self.text_of(request, ids[: i + 1]) for i in range(len(ids))]
        return self.checked(texts)

    def text_of(self, request: Reading, response: list[int]) -> Text:
        """The strings of a request with these response ids."""
        prompt = self._decode(request.prompt)
        whole = self._decode([*request.prompt, *response])
        messages = request.messages
        return Text(
            prompt if request.prompt_text is None else request.prompt_text,
            whole[len(prompt) :].rstrip(INCOMPLETE),
            None if messages is None else tuple((m["role"], m["content"]) for m in messages),
        )

    def checked(self, texts: Sequence[Text]) -> list[float]:
        """The values of texts, each distinct one asked for once. Raises RewardError."""
        distinct = list(dict.fromkeys(texts))
        try:
            values = list(self.values(distinct))
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(
                f"the reward {self.name!r} raised {type(error).__name__}: {error}"
            ) from error
        if len(values) != len(distinct):
            raise RewardError(
                f"the reward {self.name!r} gave {len(values)} values for {len(distinct)} texts; it "
                "must give one for each"
            )
        for text, value in zip(distinct, values, strict=True):
            if not isfinite(float(value)):
                raise RewardError(
                    f"the reward {self.name!r} is {value} for the response {text.response[-40:]!r}"
                    "; it must be a finite number"
                )
        by_text = dict(zip(distinct, map(float, values), strict=True))
        return [by_text[text] for text in texts]

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # one list of ids in, one text out
        return text


class HostJudge(Judge):
    """Asks a HostReward for every candidate of every row at once; where that fails, row by row, so
    that an error ends only the request that it comes from."""

    def __init__(self, reward: HostReward, memory: BatchMemory) -> None:
        super().__init__()
        self._reward = reward
        self._memory = memory
        self._requests: Sequence[Reading] = ()

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:
        self._requests = list(requests)

    def read(self, candidates: Candidates) -> None:
        self.errors = {}
        rows = candidates.ids.tolist()
        texts = [
            [self._reward.text_of(request, [*request.response, token]) for token in row]
            for request, row in zip(self._requests, rows, strict=False)
        ]
        self._rewards = torch.zeros(candidates.ids.shape, dtype=torch.float32)
        try:
            values = self._reward.checked([text for row in texts for text in row])
        except RewardError:
            values = []
            for i, row_texts in enumerate(texts):
                values += self._row(i, row_texts)
        if texts:
            rewards = torch.tensor(values, dtype=torch.float32).view(len(texts), -1)
            self._rewards[: len(texts)] = rewards
        self._rewards = self._rewards.to(self._memory.device)

    def rewards(self) -> Tensor:
        return self._rewards

    def _row(self, i: int, texts: list[Text]) -> list[float]:
        try:
            return self._reward.checked(texts)
        except RewardError as error:
            self.errors[i] = error
            return [0.0] * len(texts)
