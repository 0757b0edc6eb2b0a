"""What people pass as a prompt, brought to one of three kinds: a text, ids, or a conversation.

Nothing here knows a model. Tensors, numpy arrays, columns of tables and what tokenizers return are
taken apart into lists of ids, without the padding that an attention mask marks.
"""

import operator
from collections.abc import Mapping
from collections.abc import Sequence as Many
from numbers import Number
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from tokenizers import Encoding

from args_fast.errors import PromptError

Message = Mapping[str, Any]  # {"role": "user", "content": "Hi"}
Conversation = Many[Message]
# What a caller may pass as one prompt; a mapping is what a tokenizer returns.
Prompt = str | Many[int] | Conversation | Mapping[str, Any] | torch.Tensor | np.ndarray[Any, Any]
Plain = str | list[int] | list[dict[str, Any]]  # a prompt once it is taken apart

MESSAGE = '{"role": "user", "content": "Hi"}'
CONVERSATION = f"it must be a conversation: a list of messages like {MESSAGE}"
ALLOWED = (
    f"it must be a text, a list of ids, a conversation (a list of messages like {MESSAGE}), or "
    "what a tokenizer returns"
)


def split(prompts: Prompt | Many[Prompt], padding: int | None = None) -> list[Plain]:
    """One prompt or many -> a list of them, taken apart.

    Args:
        prompts: one prompt, or a list of them.
        padding: the tokenizer's padding id; rows of one tensor must not begin or end with it.

    Raises:
        PromptError: it is neither.
    """
    if _is_returned(prompts):
        return _rows(prompts, padding)
    plain = _alone(prompts)
    if plain is not None:
        return [plain]
    if not _is_list(prompts):
        raise PromptError(f"prompts is {_kind(prompts)}; {ALLOWED}, or a list of those")
    return [single(prompt, padding) for prompt in cast(Many[Prompt], prompts)]


def single(prompt: Prompt, padding: int | None = None) -> Plain:
    """One prompt, taken apart. Raises PromptError where it is none, or several."""
    if _is_returned(prompt):
        rows = _rows(prompt, padding)
        if len(rows) != 1:
            raise PromptError(
                f"a {type(prompt).__name__} holds {len(rows)} prompts where one is asked for; "
                "give its rows as a list"
            )
        return rows[0]
    plain = _alone(prompt)
    if plain is not None:
        return plain
    if _is_list(prompt) and not prompt:
        return []
    raise PromptError(f"the prompt is {_kind(prompt)}; {ALLOWED}")


def conversations(
    messages: str | Conversation | Many[str | Conversation],
) -> tuple[list[list[dict[str, Any]]], bool]:
    """What ``chat`` is given -> a list of conversations, and whether it was one alone.

    Args:
        messages: one conversation, or a list of them. A text stands for one message of a user.

    Raises:
        PromptError: it is something else, or empty.
    """
    alone = _alone(messages) is not None
    talks: Any = [messages] if alone else messages
    if not _is_list(talks) or not talks:
        raise PromptError(f"messages is {_kind(messages)}; {CONVERSATION}, or a list of those")
    return [_conversation(single(talk)) for talk in talks], alone


def ids(value: Any, name: str) -> list[int]:
    """Token ids as whole numbers of Python's own.

    Args:
        value: a list of them, a tensor or an array with one dimension.
        name: what they are, for the message.

    Raises:
        PromptError: it is something else, or holds something that is not a whole number.
    """
    tokens = _plain(value)
    if not _is_list(tokens):
        raise PromptError(f"{name} is {_kind(value)}; it must be a list of ids")
    return [token if type(token) is int else _id(token, name) for token in tokens]


def from_user(text: str) -> list[dict[str, Any]]:
    """The conversation whose only message is this text, of a user. Raises PromptError where the
    text is empty."""
    if not text:
        raise PromptError("the message is empty; give at least one character")
    return [{"role": "user", "content": text}]


def is_conversation(prompt: Plain) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a prompt that was taken apart is a list of messages."""
    return not isinstance(prompt, str) and _holds_messages(prompt)


def _conversation(prompt: Plain) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return from_user(prompt)
    if not is_conversation(prompt):
        raise PromptError(f"a list of ids, or an empty one, is not a conversation; {CONVERSATION}")
    return prompt


def _alone(value: Any) -> Plain | None:
    """The value as one prompt; None where it is a list of prompts, empty, or something else."""
    if isinstance(value, str):
        return str(value)
    if not _is_list(value) or not value:
        return None
    if _is_number(value[0]):
        return ids(value, "the prompt")
    if _holds_messages(value):
        return [_message(message, i) for i, message in enumerate(value, 1)]
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, Many) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) or getattr(value, "ndim", None) == 0


def _holds_messages(value: Many[Any]) -> bool:
    messages = [isinstance(item, Mapping) for item in value]
    return bool(messages) and all(messages) and any("role" in item for item in value)


def _is_returned(value: Any) -> bool:
    """Whether it is of the kinds that tokenizers return, or an array or a column of a table."""
    if isinstance(value, (Mapping, Encoding)):
        return True
    return hasattr(value, "tolist") and not isinstance(value, str)


def _rows(value: Any, padding: int | None) -> list[Plain]:
    """The prompts in what a tokenizer returned, or in an array."""
    if isinstance(value, Encoding):
        value = {"input_ids": value.ids, "attention_mask": value.attention_mask}
    if isinstance(value, Mapping):
        if "input_ids" not in value:
            raise PromptError(_without_ids(value))
        tokens, mask = _plain(value["input_ids"]), _plain(value.get("attention_mask"))
    else:
        tokens, mask = _plain(value), None
    if not _is_list(tokens):
        raise PromptError(f"a prompt is {tokens!r}; {ALLOWED}")
    nested = bool(tokens) and not _is_number(tokens[0])
    rows = tokens if nested else [tokens]
    if mask is not None:
        masks = mask if nested else [mask]
        return [_unmasked(row, kept) for row, kept in zip(rows, masks, strict=True)]
    for number, row in enumerate(rows):
        _check_padding(row, padding, number, len(rows))
    return [single(row) for row in rows]


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists, also in a list."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if _is_list(value) else value


def _unmasked(row: list[int], mask: list[int]) -> Plain:
    if len(row) != len(mask):
        raise PromptError(
            f"input_ids has {len(row)} ids where attention_mask has {len(mask)}; give both as the "
            "tokenizer returned them"
        )
    return single([token for token, kept in zip(row, mask, strict=True) if kept])


def _check_padding(row: list[Any], padding: int | None, number: int, rows: int) -> None:
    """Padding in a tensor would be read as part of the prompt. In a tensor of one row a single
    padding id at an end may be meant, such as a first token that has the same id."""
    least = 2 if rows == 1 else 1
    ends = (row[:least], row[-least:])
    if padding is not None and [padding] * least in ends:
        raise PromptError(
            f"row {number} of the ids begins or ends with the padding id {padding}; pass all that "
            "the tokenizer returns, whose attention_mask says what is padding, or lists of ids"
        )


def _id(token: Any, name: str) -> int:
    is_boolean = isinstance(token, bool) or str(getattr(token, "dtype", "")).endswith("bool")
    if not is_boolean and getattr(token, "ndim", 0) == 0:
        try:
            return operator.index(token)
        except TypeError:
            pass
    raise PromptError(f"{name} contains {token!r}, which is not a token id (a whole number)")


def _message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise PromptError(
            f"message {number} of a conversation has no role; it looks like {MESSAGE}"
        )
    return dict(message)


def _without_ids(value: Mapping[str, Any]) -> str:
    if "role" in value:
        return f"a prompt is one message; {CONVERSATION}"
    keys = ", ".join(map(repr, value)) or "none"
    return f"a prompt is a mapping without 'input_ids' (its keys: {keys}); {ALLOWED}"


def _kind(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"of type {type(value).__name__}, not text (value.decode() makes text of it)"
    return f"of type {type(value).__name__}" if value else f"{value!r}"
