"""The host's side of one prompt on its way: what has been decoded, and whether it has ended."""

from dataclasses import dataclass, field

from args_fast.config import DecodingConfig
from args_fast.generation import FinishReason, Generation, Token
from args_fast.text import TextStream


@dataclass
class Sequence:
    """A prompt, its options, and its tokens so far.

    Attributes:
        prompt: its ids.
        config: how it is decoded.
        end_tokens: ids that end it.
        text: its text as it arrives; None where there is no tokenizer.
    """

    prompt: list[int]
    config: DecodingConfig
    end_tokens: frozenset[int]
    text: TextStream | None
    finish_reason: FinishReason | None = None
    tokens: list[Token] = field(default_factory=list)
    _streamed: int = 0

    @property
    def longest(self) -> int:
        """Tokens that it may come to hold, prompt included."""
        return len(self.prompt) + self.config.max_new_tokens

    def push(self, token: int, logprob: float, reward: float, score: float) -> None:
        """Take the next token, unless the sequence has ended: the device may have run on."""
        if self.finish_reason is not None:
            return
        if token in self.end_tokens:
            self.finish_reason = "eos"
        elif len(self.tokens) + 1 == self.config.max_new_tokens:
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
