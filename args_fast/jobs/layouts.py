"""The layouts of prompt files that people have: where a line keeps its prompt and its options.

A layout is a name, what tells it apart, and a function from an object to a prompt. Text stays text
and messages stay messages; what wraps messages in a template is the decoder. To add one, write the
function and its row in LAYOUTS.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from args_fast.errors import LineError
from args_fast.jobs import openai

Content = dict[str, Any]

LABELS = ("id", "custom_id")  # keys that are copied into the record under their own names
TURN = "\n\nAssistant:"  # where the answer begins in HH-RLHF
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# Options as other programs call them: a line that has one expects it to be obeyed.
ELSEWHERE = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "eos_token_id": "eos_token_ids",
    "temp": "temperature",
    "top_k": "k",
}


@dataclass(frozen=True)
class Reading:
    """How the lines of a file are read.

    Attributes:
        format: a name in FORMATS other than "auto".
        prompt_field: the key that holds the prompt, in the formats "jsonl" and "csv".
        chat: make the message of a user of every prompt that is text.
        keep: copy a line's other keys into its record, as "input".
    """

    format: str = "jsonl"
    prompt_field: str = "prompt"
    chat: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Line:
    """What one line holds.

    Attributes:
        prompt: a text, a list of ids, or a list of messages.
        options: fields of DecodingConfig that the line sets.
        data: its keys that are neither, without those in LABELS.
    """

    prompt: Any
    options: Content
    data: Content


@dataclass(frozen=True)
class Layout:
    """One format whose lines are JSON objects.

    Attributes:
        key: the key that tells the format apart, and that its lines must have.
        about: one line for the help.
        prompt: the prompt in an object. Raises LineError.
    """

    key: str
    about: str
    prompt: Callable[[Content], Any]


def _messages(content: Content) -> Any:
    return _listed(content["messages"], "messages", "messages")


def _hh(content: Content) -> Any:
    """The prompt is what precedes the last answer of ``chosen``."""
    chosen = content["chosen"]
    if isinstance(chosen, str) and TURN in chosen:
        return chosen[: chosen.rindex(TURN) + len(TURN)]
    if isinstance(chosen, list):
        return _without_answer([dict(_object(message, "chosen")) for message in chosen], "chosen")
    raise LineError(
        f"chosen is {json.dumps(chosen)[:40]}, without {json.dumps(TURN)}; the prompt ends there"
    )


def _shp(content: Content) -> Any:
    return content["history"]


def _sharegpt(content: Content) -> Any:
    """ShareGPT's roles by the usual names, without a last answer."""
    messages = []
    for turn in _listed(content["conversations"], "conversations", "turns"):
        turn = _object(turn, "conversations")
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if role not in ROLES:
            raise LineError(
                f"conversations has a turn from {json.dumps(role)}; known are {', '.join(ROLES)}"
            )
        messages.append({"role": ROLES[role], "content": text})
    return _without_answer(messages, "conversations")


def _alpacaeval(content: Content) -> Any:
    if content.get("input"):
        raise LineError(
            "the line has an input next to its instruction, and only it can say how they belong "
            'together; write both into one "prompt"'
        )
    return content["instruction"]


# In the order in which they are tried.
LAYOUTS = {
    "openai": Layout("body", "OpenAI's batch API: custom_id, body.messages", openai.prompt),
    "messages": Layout("messages", "conversations: messages of role and content", _messages),
    "sharegpt": Layout("conversations", "ShareGPT: conversations of from and value", _sharegpt),
    "hh": Layout("chosen", "HH-RLHF: the prompt is cut from chosen", _hh),
    "alpacaeval": Layout("instruction", "AlpacaEval: instruction", _alpacaeval),
    "shp": Layout("history", "SHP: history", _shp),
}
FORMATS = ("auto", "jsonl", *LAYOUTS, "csv", "text")


def detect(content: Content, prompt_field: str) -> str | None:
    """The format of an object; None where no key of it tells. A prompt field that was named is the
    only key that tells."""
    if prompt_field in content:
        return "jsonl"
    if prompt_field != Reading.prompt_field:
        return None
    if "messages" in content:
        return "jsonl"  # whose lines may hold either
    return next((name for name, layout in LAYOUTS.items() if layout.key in content), None)


def fits(content: Content, reading: Reading) -> bool:
    """Whether an object has the key that its format needs."""
    if reading.format in LAYOUTS:
        return LAYOUTS[reading.format].key in content
    return reading.prompt_field in content or (
        reading.prompt_field == Reading.prompt_field and "messages" in content
    )


def read(content: Content, reading: Reading, options: Sequence[str]) -> Line:
    """What an object holds.

    Args:
        content: the object.
        reading: how it is read.
        options: names of the fields of DecodingConfig.

    Raises:
        LineError: it holds no prompt, or something that looks like a misspelt option.
    """
    layout = LAYOUTS.get(reading.format)
    key = layout.key if layout else reading.prompt_field
    if reading.format == "jsonl" and key not in content and "messages" in content:
        layout, key = LAYOUTS["messages"], "messages"
    if key not in content:
        raise LineError(_without(key, reading))
    if reading.format not in LAYOUTS or reading.format == "messages":
        _check_names(content, key, options)
    prompt = layout.prompt(content) if layout else content[key]
    chosen = {name: content[name] for name in options if name in content}
    if reading.format == "openai":
        chosen |= openai.options(content["body"], options)
    known = {key, *LABELS, *options}
    data = {name: value for name, value in content.items() if name not in known}
    return Line(_checked(prompt), chosen, data)


def _checked(prompt: Any) -> Any:
    if isinstance(prompt, (str, list)) and prompt:
        return prompt
    raise LineError(
        f"the prompt is {json.dumps(prompt)[:40]}; it is a text, a list of ids or a list of "
        "messages, not empty"
    )


def _without(key: str, reading: Reading) -> str:
    if reading.format in LAYOUTS:
        return f'there is no "{key}", which the format {reading.format} needs'
    return f'there is no "{key}"; it is a text, a list of ids, or a list of messages'


def _check_names(content: Content, key: str, options: Sequence[str]) -> None:
    """Other keys are data of the user's own, but not those that look like an option."""
    for name in content:
        if name in (key, *LABELS, *options):
            continue
        close = get_close_matches(name.lower(), options, n=1, cutoff=0.8)
        meant = ELSEWHERE.get(name) or next(iter(close), None)
        if meant:
            raise LineError(
                f"the line holds {json.dumps(name)[:40]}, which is not an option here (did you "
                f"mean {meant}?) and would be ignored; the options are {', '.join(options)}. "
                "Rename it if it is data."
            )


def _listed(value: Any, name: str, items: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise LineError(
            f"{name} is {json.dumps(value)[:40]}; it must be a list of {items}, not empty"
        )
    return value


def _object(value: Any, name: str) -> Content:
    if not isinstance(value, dict):
        raise LineError(f"{name} holds {json.dumps(value)[:40]}, which is not a JSON object")
    return value


def _without_answer(messages: list[Content], name: str) -> list[Content]:
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    if not messages:
        raise LineError(f"{name} holds no message before the assistant's")
    return messages
