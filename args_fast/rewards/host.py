"""Rewards that are computed on the host, from text: the base of every kind that reads strings."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from args_fast.errors import ArgsError, ConfigError, RewardError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import GroupCache
from args_fast.models.backbone import Backbone
from args_fast.rewards.base import Candidates, Judge, Reading, Reward

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for part of a character
PROMPTS = 256  # decoded prompts that are remembered: every candidate of a request has the same


@dataclass(frozen=True)
class Exchange:
    """What a text reader reads: a prompt, the response to it so far, and the conversation that the
    prompt was, if it was one (as a tuple of (role, content))."""

    prompt: str
    response: str
    messages: tuple[tuple[str, str], ...] | None = None

    def as_messages(self) -> list[dict[str, str]] | None:
        """The conversation before the response; None where the prompt was not one."""
        if self.messages is None:
            return None
        return [{"role": role, "content": content} for role, content in self.messages]


class HostReward(Reward):
    """A reward of prompt and response as strings. A subclass gives ``values``.

    Special tokens are not part of a response (so an EOS candidate adds nothing), and neither is a
    character that is not complete yet.
    """

    on_host = True
    lm_tokenizer: PreTrainedTokenizerBase  # decodes what the language model wrote

    @abstractmethod
    def values(self, texts: Sequence[Exchange]) -> list[float]:
        """One finite number per text; each text is given once. What is raised ends the requests
        that the texts belong to."""

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if tokenizer is None:
            raise ConfigError(
                f"the reward {self.name!r} reads text, and this decoder has no tokenizer; pass "
                "tokenizer="
            )
        self.lm_tokenizer = tokenizer
        self._prompt: Callable[[tuple[int, ...]], str] = lru_cache(PROMPTS)(self._decode)

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> "HostJudge":
        return HostJudge(self, memory)

    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        ids = list(continuation)
        texts = [self.text_of(request, ids[: i + 1]) for i in range(len(ids))]
        return self.checked(texts)

    def reward_of(self, request: Reading, continuation: Sequence[int]) -> float:
        return self.checked([self.text_of(request, continuation)])[0]

    def text_of(self, request: Reading, response: Sequence[int]) -> Exchange:
        """The strings of a request with these response ids."""
        prompt = self._prompt(tuple(request.prompt))
        whole = self._decode([*request.prompt, *response])
        messages = request.messages
        return Exchange(
            prompt if request.prompt_text is None else request.prompt_text,
            whole[len(prompt) :].rstrip(INCOMPLETE),
            None if messages is None else tuple((m["role"], m["content"]) for m in messages),
        )

    def checked(self, texts: Sequence[Exchange]) -> list[float]:
        """The values of texts, each distinct one asked for once. Raises ArgsError."""
        distinct = list(dict.fromkeys(texts))
        try:
            values = list(self.values(distinct))
        except ArgsError:
            raise
        except Exception as error:
            raise RewardError(
                f"the reward {self.name!r} raised {type(error).__name__}: {error}"
            ) from error
        by_text = dict(zip(distinct, self.numbers(values, distinct), strict=True))
        return [by_text[text] for text in texts]

    def numbers(self, values: Sequence[float], texts: Sequence[Exchange]) -> list[float]:
        """The values as floats. Raises RewardError unless there is a finite one for each text."""
        if len(values) != len(texts):
            raise RewardError(
                f"the reward {self.name!r} gave {len(values)} values for {len(texts)} texts; it "
                "must give one for each"
            )
        numbers = [float(value) for value in values]
        for text, value in zip(texts, numbers, strict=True):
            if not isfinite(value):
                raise RewardError(
                    f"the reward {self.name!r} is {value} for the response {text.response[-40:]!r}"
                    "; it must be a finite number"
                )
        return numbers

    def _decode(self, ids: Sequence[int]) -> str:
        # transformers looks at every id of a list, and takes a tensor as it is.
        text = self.lm_tokenizer.decode(
            torch.tensor(ids, dtype=torch.int64, device="cpu"),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
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
        rewards = torch.zeros(candidates.ids.shape, dtype=torch.float32, device="cpu")
        for i, values in enumerate(self._values(texts)):
            rewards[i] = torch.tensor(values, dtype=torch.float32, device="cpu")
        self._rewards = rewards.to(self._memory.device)

    def rewards(self) -> Tensor:
        return self._rewards

    def together(
        self, requests: Sequence[Reading], rows: Sequence[Sequence[Exchange]]
    ) -> list[list[float]]:
        """The values of the texts of every request. Raises ArgsError."""
        values = iter(self._reward.checked([text for texts in rows for text in texts]))
        return [[next(values) for _ in texts] for texts in rows]

    def _values(self, rows: list[list[Exchange]]) -> list[list[float]]:
        requests = self._requests
        if len(rows) > 1:
            try:
                return self.together(requests, rows)
            except ArgsError:
                pass  # which row it comes from shows below
        return [self._alone(i, requests[i], texts) for i, texts in enumerate(rows)]

    def _alone(self, i: int, request: Reading, texts: list[Exchange]) -> list[float]:
        try:
            return self.together([request], [texts])[0]
        except ArgsError as error:
            self.errors[i] = error
            return [0.0] * len(texts)
