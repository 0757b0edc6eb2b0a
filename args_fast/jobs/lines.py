"""The input of a job: one JSON object a line, each a prompt and what it overrides."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from args_fast.config import DecodingConfig
from args_fast.errors import ArgsError, ConfigError, LineError
from args_fast.jobs.records import Origin

MAX_LINE = 16 * 2**20  # bytes; a file without line breaks must not fill the memory
# One line, one record: samples are lines of their own, with seeds of their own.
OPTIONS = tuple(
    field.name for field in fields(DecodingConfig) if field.name != "num_return_sequences"
)

Prompt = str | list[int]
Request = tuple[list[int], DecodingConfig]
Entry = tuple[Origin, Request | ArgsError]


def numbered(stream: BinaryIO, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of every line that is not blank. Of a line longer than MAX_LINE comes
    the beginning, MAX_LINE + 1 bytes."""
    number = first
    while line := stream.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE + 1)
        if not line.isspace():
            yield number, line
        number += 1


def entries(
    lines: Iterable[tuple[int, bytes]],
    defaults: DecodingConfig,
    encode: Callable[[str], list[int]],
) -> Iterator[Entry]:
    """What each line asks for, or the error that it is.

    Args:
        lines: as ``numbered`` gives them.
        defaults: the options of a line that names none.
        encode: a prompt's ids.
    """
    for number, line in lines:
        labels: dict[str, Any] = {}
        try:
            content = _parse(line)
            labels = _labels(content)
            prompt, config = _prompt(content), _config(content, defaults)
            ids = encode(prompt) if isinstance(prompt, str) else prompt
            yield Origin(number, labels), (ids, config)
        except ArgsError as error:
            yield Origin(number, labels), error


def load_config(path: Path) -> dict[str, Any]:
    """The options in a JSON file, for the defaults of a job.

    Raises ConfigError where it is no JSON object, or names an option that does not exist.
    """
    try:
        content = _object(path.read_bytes())
    except LineError as error:
        raise ConfigError(f"{path}: {error}") from error
    unknown = [name for name in content if name not in OPTIONS]
    if unknown:
        raise ConfigError(
            f"{path} holds {_named(unknown)}, which is no option; there are {', '.join(OPTIONS)}"
        )
    return content


def configured(defaults: DecodingConfig, overrides: dict[str, Any]) -> DecodingConfig:
    """``defaults`` with what JSON overrides. Raises ConfigError."""
    if not overrides:
        return defaults
    try:
        return replace(defaults, **overrides)
    except (TypeError, OverflowError) as error:  # JSON of a kind that no option takes
        given = ", ".join(f"{name} = {json.dumps(value)}" for name, value in overrides.items())
        raise ConfigError(f"the options {given} do not work together: {error}") from error


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise LineError(f"the line is longer than {MAX_LINE} bytes, which is no prompt")
    content = _object(line)
    unknown = [name for name in content if name not in ("prompt", "id", *OPTIONS)]
    if unknown:
        raise LineError(
            f"the line holds {_named(unknown)}, which is no option here; beside prompt there are "
            f"{', '.join(OPTIONS)}, and id for data of your own (any JSON)"
        )
    return content


def _object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise LineError(f"not JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise LineError(
            f"not a JSON object but {json.dumps(content)[:40]}; it looks like "
            '{"prompt": "How do I grow basil?"}'
        )
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} does not exist in JSON")


def _labels(content: dict[str, Any]) -> dict[str, Any]:
    if "id" not in content:
        return {}
    try:
        json.dumps(content["id"], allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise LineError(f"its id cannot be copied: {error}") from error
    return {"id": content["id"]}


def _prompt(content: dict[str, Any]) -> Prompt:
    if "prompt" not in content:
        raise LineError('there is no "prompt"; it is a text or a list of ids')
    prompt = content["prompt"]
    if isinstance(prompt, str) and prompt:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise LineError(f"the prompt is not Unicode text: {error.reason}") from error
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise LineError(
        f"the prompt is {json.dumps(prompt)[:40]}; it is a text or a list of ids, not empty"
    )


def _config(content: dict[str, Any], defaults: DecodingConfig) -> DecodingConfig:
    return configured(defaults, {name: content[name] for name in OPTIONS if name in content})


def _named(names: list[str]) -> str:
    return ", ".join(json.dumps(name)[:40] for name in names[:3])
