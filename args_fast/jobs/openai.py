"""A request in OpenAI's words, as a line of its batch API carries it, in ours."""

import json
from collections.abc import Sequence
from typing import Any

from args_fast.errors import LineError

RENAMED = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n": "num_return_sequences",
}
SAME = ("temperature", "seed", "stop", "top_p")
# Fields that would change the answer, with the values that ask for nothing.
NOT_OBEYED: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
}


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
    for name, nothing in NOT_OBEYED.items():
        if name in fields and fields[name] not in nothing:
            raise LineError(
                f"the body sets {name} to {json.dumps(fields[name])[:40]}, which is not supported; "
                "leave it out"
            )
    chosen = {option: fields[name] for name, option in RENAMED.items() if name in fields}
    chosen |= {name: fields[name] for name in SAME if name in fields}
    args = fields.get("args", {})
    unknown = [name for name in args if name not in ours] if isinstance(args, dict) else [args]
    if unknown:
        raise LineError(
            f"the body's args hold {json.dumps(unknown[0])[:40]}, which is not an option; the "
            f"options are {', '.join(ours)}"
        )
    return chosen | args
