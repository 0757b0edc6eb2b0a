"""One prompt on its way: what has been decoded, whether it has ended, and which pages it holds."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from args_fast.config import DecodingConfig
from args_fast.generation import FinishReason, Generation, Token
from args_fast.text import TextStream


@dataclass(eq=False)
class Request:
    """A prompt, its options, and its tokens so far.

    Attributes:
        prompt: its ids.
        config: how it is decoded; one sample.
        end_tokens: ids that end it.
        text: its text as it arrives; None where there is no tokenizer.
        ids: the prompt and the tokens so far. Nothing else is needed to go on with it, so a
            sequence whose pages were taken away is filled again from here.
        error: what kept it from its end.
        pages: those it holds, in the order of its text.
        filled: tokens of ``ids`` that both caches hold; only while its prompt is being stored.
        entered: pages that others can find, and the serial number of the prefix that they make.
        unread: tokens that the device has been asked for, and that are not among ``ids`` yet.
    """

    prompt: list[int]
    config: DecodingConfig
    end_tokens: frozenset[int]
    text: TextStream | None
    finish_reason: FinishReason | None = None
    error: BaseException | None = None
    tokens: list[Token] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    filled: int = 0
    entered: tuple[int, int] = (0, 0)
    unread: int = 0
    _streamed: int = 0
    _noise: Tensor | None = None

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)

    @property
    def guided(self) -> bool:
        """Whether the reward model is consulted."""
        return self.config.consults_reward

    @property
    def candidates(self) -> int:
        """k, or 1 where no other candidate could be chosen."""
        return self.config.k if self.guided or self.config.temperature is not None else 1

    @property
    def longest(self) -> int:
        """Tokens that it may come to hold, prompt included."""
        return len(self.prompt) + self.config.max_new_tokens

    @property
    def reached(self) -> int:
        """Tokens that it holds once all is read that the device has been asked for."""
        return len(self.ids) + self.unread

    @property
    def remaining(self) -> int:
        """Tokens that the device may yet be asked for."""
        return self.longest - self.reached

    @property
    def over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def noise(self, steps: int) -> Tensor:
        """The draws of the next steps, [steps, candidates] f32."""
        if self.config.temperature is None:
            return torch.zeros(steps, self.candidates)
        if self._noise is None:
            self._noise = self.config.noise()
        at = len(self.tokens) + self.unread
        return self._noise[at : at + steps]

    def push(self, token: int, logprob: float, reward: float, score: float) -> None:
        """Take the next token, unless the sequence has ended: the device may have run on."""
        if self.over:
            return
        self.ids.append(token)
        if token in self.end_tokens:
            self.finish_reason = "eos"
        elif len(self.ids) == self.longest:
            self.finish_reason = "length"
        piece = None
        if self.text is not None:
            self.text.push(token, last=self.finish_reason is not None)
            if self.text.stopped:
                self.finish_reason = "stop"
            piece = self.text.take(last=self.finish_reason is not None)
        self.tokens.append(Token(token, piece, logprob, reward, score, self.finish_reason))

    def take(self) -> list[Token]:
        """The tokens that came since the last call."""
        new = self.tokens[self._streamed :]
        self._streamed = len(self.tokens)
        return new

    def generation(self) -> Generation:
        assert self.finish_reason is not None
        return Generation(
            token_ids=[token.token_id for token in self.tokens],
            text=None if self.text is None else self.text.text,
            logprobs=[token.logprob for token in self.tokens],
            rewards=[token.reward for token in self.tokens],
            scores=[token.score for token in self.tokens],
            finish_reason=self.finish_reason,
            prompt_token_ids=self.prompt,
        )
