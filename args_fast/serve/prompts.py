"""Requests' text and conversations to token ids, in a thread of its own: the loop never waits.

What a user writes is data: it is tokenised, or handed to the model's own chat template as a value.
No template, pattern, file name or address of a request is ever evaluated or opened.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from args_fast.encoding import Encoder
from args_fast.prompts import Plain
from args_fast.serve.errors import ApiError, invalid

T = TypeVar("T")
COMPOSED = 4  # characters that a normaliser may make one of


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt, ready for the engine.

    Attributes:
        ids: its tokens.
        source: what the client sent: rewards with a template or a tokenizer of their own read it.
    """

    ids: list[int]
    source: Plain


class Prompts:
    """Encodes prompts as the engine does, with a tokenizer that no other thread uses.

    Args:
        encoder: the language model's.
        longest: tokens that a prompt may have.
    """

    def __init__(self, encoder: Encoder, longest: int) -> None:
        assert encoder.tokenizer is not None
        self._encoder = encoder
        self._tokenizer = encoder.tokenizer
        self._longest = longest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="args-fast-prompts")
        # A longer text has too many tokens whatever they are, and is refused before any work.
        self.longest_text = longest * COMPOSED * max(map(len, self._tokenizer.get_vocab()))

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self._tokenizer.chat_template)

    async def encode(self, prompt: str | list[int]) -> EncodedPrompt:
        """A text, with the tokenizer's special tokens, or ids as they are. Raises an ApiError or a
        PromptError where they are not valid, or too many."""
        if isinstance(prompt, str):
            self._check_length(len(prompt), self.longest_text)
            return await self._encode(prompt)
        self._check_length(len(prompt), None)
        ids = self._encoder.check(prompt, "the prompt")
        return EncodedPrompt(ids, ids)

    async def encode_chat(self, messages: list[dict[str, Any]]) -> EncodedPrompt:
        """A conversation in the model's own template, open for the assistant's turn. Raises as
        ``encode``."""
        if not self.has_template:
            raise invalid(
                "this model has no chat template, so it takes no conversations; use /v1/completions"
            )
        characters = sum(len(message["content"]) for message in messages)
        self._check_length(characters, self.longest_text)
        return await self._encode(messages)

    async def encode_bare(self, text: str) -> list[int]:
        """The ids of a text without the tokenizer's special tokens."""
        self._check_length(len(text), self.longest_text)
        return await self._in_thread(self._bare, text)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)

    async def _encode(self, prompt: Plain) -> EncodedPrompt:
        ids = (await self._in_thread(self._encoder.encode, prompt)).ids
        self._check_length(len(ids), None)
        return EncodedPrompt(ids, prompt)

    def _bare(self, text: str) -> list[int]:
        try:
            return self._tokenizer(text, add_special_tokens=False).input_ids
        except (UnicodeError, TypeError) as error:  # half of a surrogate pair
            raise invalid("the prompt is not Unicode text", "prompt") from error

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _check_length(self, length: int, longest_text: int | None) -> None:
        """Of ids, or of a text whose characters may be up to ``longest_text``."""
        if length > (longest_text or self._longest):
            raise too_long(str(length) if longest_text is None else "more", self._longest)


def too_long(tokens: str, longest: int) -> ApiError:
    """A 400 with OpenAI's code for a prompt that does not fit."""
    return invalid(
        f"{longest_context(longest)}, the answer's among them, but the prompt has {tokens}. "
        "Shorten the prompt.",
        code="context_length_exceeded",
    )


def longest_context(tokens: int) -> str:
    """How such a refusal begins: OpenAI's words, by which clients tell it from others."""
    return f"This model's maximum context length is {tokens} tokens"
