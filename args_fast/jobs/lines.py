"""Items of a job's input to requests: each a prompt and the options that it overrides."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

from args_fast.config import DecodingConfig
from args_fast.errors import ArgsError, ConfigError, LineError
from args_fast.jobs.layouts import LABELS, Line, Reading, read
from args_fast.jobs.records import Origin
from args_fast.prompts import from_user

MAX_LINE = 16 * 2**20  # bytes; a file without line breaks must not fill the memory
OPTIONS = tuple(field.name for field in fields(DecodingConfig))

Request = tuple[Any, DecodingConfig]
Entry = tuple[Origin, Request | ArgsError]
Item = Any  # a line of the file, in bytes, or what a file of another kind holds in its place


class Lines(Protocol):
    """A stream that gives its lines."""

    def readline(self, size: int = -1, /) -> bytes: ...


def numbered(stream: Lines | BinaryIO, start: int = 1) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of every line that is not blank. Of a line longer than MAX_LINE comes
    the beginning, MAX_LINE + 1 bytes."""
    number = start
    while line := stream.readline(MAX_LINE + 1):
        piece = line
        while len(piece) > MAX_LINE and not piece.endswith(b"\n"):
            piece = stream.readline(MAX_LINE + 1)
        if not line.isspace():
            yield number, line
        number += 1


def entries(
    items: Iterable[tuple[int, Item]], defaults: DecodingConfig, reading: Reading
) -> Iterator[Entry]:
    """What each line asks for, or the error that it is.

    Args:
        items: the lines with their numbers.
        defaults: the options of a line that names none.
        reading: how the lines are read.
    """
    for number, item in items:
        labels: dict[str, Any] = {}
        try:
            content = parse(item, reading)
            labels |= _labels({name: content[name] for name in LABELS if name in content})
            line = read(content, reading, OPTIONS)
            if reading.keep:
                labels |= _labels({"input": line.data})
            request = _prompt(line, reading), configured(defaults, line.options)
            yield Origin(number, labels), request
        except ArgsError as error:
            yield Origin(number, labels), error


def parse(item: Item, reading: Reading) -> dict[str, Any]:
    """The object that an item of the input is. Raises LineError."""
    if isinstance(item, ArgsError):
        raise item
    if isinstance(item, bytes):
        if len(item) > MAX_LINE:
            raise LineError(f"the line is longer than {MAX_LINE} bytes; no prompt is")
        if reading.format == "text":
            return {reading.prompt_field: _decoded(item).rstrip("\r\n")}
        item = _parsed(item)
    elif isinstance(item, str):  # in an array
        item = {reading.prompt_field: item}
    if not isinstance(item, dict):
        raise LineError(
            f"not a JSON object but {json.dumps(item)[:40]}; it looks like "
            '{"prompt": "How do I grow basil?"}'
        )
    return item


def load_config(path: Path) -> dict[str, Any]:
    """The options in a JSON file, for the defaults of a job.

    Raises ConfigError where it is not a JSON object, or names an option that does not exist.
    """
    try:
        content = parse(path.read_bytes(), Reading())
    except LineError as error:
        raise ConfigError(f"{path}: {error}") from error
    unknown = [name for name in content if name not in OPTIONS]
    if unknown:
        named = ", ".join(json.dumps(name)[:40] for name in unknown[:3])
        raise ConfigError(
            f"{path} holds {named}, which is not an option; the options are {', '.join(OPTIONS)}"
        )
    return content


def configured(defaults: DecodingConfig, overrides: dict[str, Any]) -> DecodingConfig:
    """``defaults`` with what JSON overrides. Raises ConfigError."""
    return replace(defaults, **overrides) if overrides else defaults


def _prompt(line: Line, reading: Reading) -> Any:
    return from_user(line.prompt) if reading.chat and isinstance(line.prompt, str) else line.prompt


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(_decoded(text), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise LineError(f"not JSON that can be read: {error}") from error


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} does not exist in JSON")


def _labels(labels: dict[str, Any]) -> dict[str, Any]:
    """Data of the user's own, once it is known that it can be written again."""
    for name, value in labels.items():
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise LineError(f"its {name} cannot be copied: {error}") from error
    return labels
