"""Conversations to text, through the chat template that a tokenizer comes with."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from args_fast.errors import PromptError

Messages = list[dict[str, Any]]

PROBE = "args-fast asks"  # a message that shows what a template writes around one
PARTS = "'type': 'text'"  # how a template that wants plain text would print a list of parts


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The text of a conversation, up to where the assistant's answer begins.

    A last message of the assistant is left open, so that the model continues it.

    Args:
        tokenizer: with a chat template.
        messages: role and content of each, as ``with_text`` leaves them.

    Raises:
        PromptError: there is no template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise PromptError(
            "the tokenizer has no chat template, so it cannot turn messages into text; give the "
            "prompt as text in the form that the model was trained on, or set "
            "tokenizer.chat_template"
        )
    text = _apply(tokenizer, messages)
    last = (messages[-1].get("content") or "").strip()
    if last in text:
        return text
    # Templates of models that also see images read content as a list of parts, and print nothing
    # of plain text.
    try:
        in_parts = _apply(tokenizer, [_in_parts(message) for message in messages])
    except PromptError:
        return text
    return in_parts if last in in_parts and PARTS not in in_parts else text


def with_text(messages: Messages) -> Messages:
    """The messages with their content as plain text: parts of type "text" are joined.

    Raises PromptError where content is something else, or where no message has any.
    """
    if not messages:
        raise PromptError("the conversation is empty; give at least one message")
    plain = [message | {"content": _text(message.get("content"))} for message in messages]
    if not any(message["content"] for message in plain):
        raise PromptError("no message of the conversation has any content; give some text")
    return plain


def is_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the text looks like a conversation that went through the tokenizer's template: it
    holds what the template writes after a user's message."""
    try:
        turn = _apply(tokenizer, [{"role": "user", "content": PROBE}])
    except PromptError:
        return False
    after = turn.rpartition(PROBE)[2].strip()
    return bool(after) and after in text


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    is_open = messages[-1].get("role") == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not is_open,
            continue_final_message=is_open,
        )
    except Exception as error:  # a template is a program of the model's author: anything may come
        raise PromptError(f"the chat template refuses the conversation: {error}") from error
    assert isinstance(text, str)
    return text


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message.get("content") or ""}]}


def _text(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise PromptError(
            f"the content of a message is {content!r}; it must be text, or a list of parts like "
            '{"type": "text", "text": "Hi"}'
        )
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PromptError(
                f"a message holds a part of type {part.get('type')!r}; only text can be read: "
                '{"type": "text", "text": "Hi"}'
            )
    return "".join(part["text"] for part in content)
