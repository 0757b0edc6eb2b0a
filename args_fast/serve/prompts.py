"""Requests' text and conversations to token ids, in a thread of its own: the loop never waits.

What a user writes is data: it is tokenised, or handed to the model's own chat template as a value.
No template, pattern, file name or address of a request is ever evaluated or opened.
"""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from args_fast.serve.errors import ApiError, invalid

T = TypeVar("T")
COMPOSED = 4  # characters that a normaliser may make one of


class Prompts:
    """Encodes prompts with a copy of the tokenizer, which no other thread uses.

    Args:
        tokenizer: the language model's.
        longest: tokens that a prompt may have.
        vocab_size: ids of the language model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int, vocab_size: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._longest = longest
        self._vocab_size = vocab_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="args-fast-prompts")
        # A longer text has too many tokens whatever they are, and is refused before any work.
        self.longest_text = longest * COMPOSED * max(map(len, tokenizer.get_vocab()))

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self._tokenizer.chat_template)

    async def encode(self, prompt: str | Sequence[int], *, special: bool = True) -> list[int]:
        """The ids of a text, with the tokenizer's special tokens; ids as they are. Raises an
        ApiError where they are not valid, or too many."""
        if not isinstance(prompt, str):
            return self._checked(list(prompt))
        self._check_text(len(prompt))
        return self._checked(await self._in_thread(self._encode, prompt, special))

    async def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The ids of a conversation in the model's own template, ready for the assistant's turn."""
        if not self.has_template:
            raise invalid(
                "this model has no chat template, so it takes no conversations; use /v1/completions"
            )
        self._check_text(sum(len(message["content"]) for message in messages))
        return self._checked(await self._in_thread(self._render, messages))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)

    def _encode(self, text: str, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can hold what UTF-8 cannot
            raise invalid(
                "the prompt contains half of a surrogate pair; send whole characters"
            ) from error
        return self._tokenizer(text, add_special_tokens=special).input_ids

    def _render(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise invalid(
                f"the model's chat template refuses this conversation: {error}", "messages"
            ) from error
        return self._encode(str(text), False)  # the template wrote the special tokens

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _check_text(self, characters: int) -> None:
        if characters > self.longest_text:
            raise too_long(f"more than {self._longest}", self._longest)

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise invalid("the prompt has no tokens; give at least one", "prompt")
        if len(ids) > self._longest:
            raise too_long(str(len(ids)), self._longest)
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise invalid(
                    f"the prompt contains {token}, which is not a valid token id (valid: 0 to "
                    f"{self._vocab_size - 1})",
                    "prompt",
                )
        return ids


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
