"""A request in OpenAI's words, as a line of its batch API carries it, in ours."""

import json
from collections.abc import Sequence
from typing import Any

from args_fast.errors import LineError
from args_fast.openai_fields import (
    ALSO_MAX_TOKENS,
    OPENAI_NAMES,
    Refusal,
    disagreement,
    refused_field,
)

OURS = {openai: ours for ours, openai in OPENAI_NAMES.items()} | {ALSO_MAX_TOKENS: "max_new_tokens"}


def prompt(content: dict[str, Any]) -> Any:
    """The messages of a chat completion, or the prompt of a completion. Raises LineError."""
    body = content["body"]
    if not isinstance(body, dict):
        raise LineError(f"body is {json.dumps(body)[:40]}; it must be a JSON object")
    for key in ("messages", "prompt"):
        if body.get(key):
            return body[key]
    raise LineError('the body has neither "messages" nor "prompt"')


def options(body: dict[str, Any], ours: Sequence[str]) -> dict[str, Any]:
    """Our options among the fields of a body: OpenAI's own by our names, and all of ours under
    "args". Fields that change nothing about the answer are left alone.

    Raises:
        LineError: a field would change the answer and is not supported, or "args" holds something
            that is not an option.
    """
    fields = {name: value for name, value in body.items() if value is not None}
    refusal = refused_field(fields) or disagreement(fields) or _echo(fields)
    if refusal is not None:
        raise LineError(f"the body of the line: {refusal.message}")
    chosen = {OURS[name]: value for name, value in fields.items() if name in OURS}
    args = fields.get("args", {})
    unknown = [name for name in args if name not in ours] if isinstance(args, dict) else [args]
    if unknown:
        raise LineError(
            f"the body's args hold {json.dumps(unknown[0])[:40]}, which is not an option; the "
            f"options are {', '.join(ours)}"
        )
    return chosen | args


def _echo(fields: dict[str, Any]) -> Refusal | None:
    """A job's line has the prompt next to the answer, not in it."""
    asked = fields.get("echo", False) is not False
    return Refusal("echo", "echo is not supported in a job; leave it out") if asked else None
