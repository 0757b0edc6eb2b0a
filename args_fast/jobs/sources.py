"""The input of a job as numbered items, whatever kind of file it is.

Lines stay bytes until they are read one by one; rows of a table and elements of a JSON array come
as they are. gzip is undone on the way. What the file is, and in which format, is found out before
any model is loaded.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from args_fast.errors import JobError, LineError
from args_fast.jobs import streams, tables
from args_fast.jobs.layouts import FORMATS, LAYOUTS, Reading, detect, fits
from args_fast.jobs.lines import Item, numbered, parse
from args_fast.jobs.streams import Held

TRIED = 100  # lines that are searched for the first that tells the format
SEARCHED = 64 * 2**20  # bytes of them
FREE = ("auto", "jsonl", "csv")  # formats whose prompt may have any key


@dataclass(frozen=True)
class Source:
    """An input that is open.

    Attributes:
        reading: how its items are read, with the format that was found.
        is_plain: whether it is a file of lines as they are, so that a line begins at a byte of it.
    """

    reading: Reading
    is_plain: bool
    _name: str
    _items: Callable[[], Iterable[Item]]

    def items(self) -> Iterator[tuple[int, Item]]:
        """(number, item) of each, once; blank lines count and are left out. Raises JobError where
        the file is damaged."""
        with streams.undamaged(self._name):
            yield from self._items()


@contextmanager
def opened(name: str, reading: Reading) -> Iterator[Source]:
    """Open an input and find out what it is.

    Args:
        name: a file, or "-" for standard input.
        reading: how it is read; its format may be "auto".

    Raises:
        JobError: it is not a text file, damaged, or in none of the formats.
        OSError: it cannot be opened.
    """
    if reading.prompt_field != Reading.prompt_field and reading.format not in FREE:
        raise JobError(f"a prompt field is for the formats jsonl and csv, not {reading.format}")
    with streams.opened(name) as (stream, is_packed):
        source = _recognise(name, stream, reading)
        yield replace(source, is_plain=source.is_plain and not is_packed)


def _recognise(name: str, stream: Held, reading: Reading) -> Source:
    """What a file is and how it is read. Raises JobError where it is in no format."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if reading.format == "csv" or (reading.format == "auto" and suffix in (".csv", ".tsv")):
        separator = tables.delimiter(name, stream, reading)
        stream.rewind(release=True)
        reading = replace(reading, format="csv")
        rows = tables.rows(name, stream, separator)
        return Source(reading, False, name, lambda: enumerate(rows, 1))
    start = None if reading.format == "text" else next(numbered(stream), None)
    stream.rewind()
    if start is not None and start[1].removeprefix(tables.BOM).lstrip().startswith(b"["):
        elements = list(enumerate(tables.array(name, stream), 1))
        reading = replace(reading, format=_format(name, elements, reading))
        return Source(reading, False, name, lambda: elements)
    if start is not None:
        _check_line_ends(name, start[1])
        is_text = reading.format == "auto" and suffix == ".txt"
        reading = replace(reading, format=_format(name, _tried(stream), reading, is_text=is_text))
    elif reading.format == "auto":  # the file is empty
        reading = replace(reading, format="jsonl")
    stream.rewind(release=True)
    return Source(reading, True, name, lambda: numbered(stream))


def _tried(stream: Held) -> Iterator[tuple[int, bytes]]:
    """The first lines, as many as are searched for one that tells the format."""
    for numbered_line in islice(numbered(stream), TRIED):
        yield numbered_line
        if stream.size > SEARCHED:
            return


def _format(
    name: str, items: Iterable[tuple[int, Item]], reading: Reading, *, is_text: bool = False
) -> str:
    """The format of the first item that is in one.

    Args:
        name: of the file.
        items: numbered ones.
        reading: with the format that is asked for, or "auto".
        is_text: whether lines that are not JSON are prompts.

    Raises:
        JobError: no item is in any format, or none in the one that is asked for.
    """
    why, keys = "", None
    for number, item in items:
        try:
            content = parse(item, reading)
        except LineError as error:
            why = why or f"line {number} is {error}"
            continue
        if reading.format == "auto":
            format = detect(content, reading.prompt_field)
        else:
            format = reading.format if fits(content, reading) else None
        if format:
            _warn_of_answers(name, content, format)
            return format
        keys = keys or list(content)
    if is_text and keys is None:
        return "text"
    raise JobError(_in_no_format(name, reading, why, keys))


def _in_no_format(name: str, reading: Reading, why: str, keys: list[str] | None) -> str:
    if keys is not None:
        why = "its first object has " + (f"the keys {', '.join(keys[:8])}" if keys else "no keys")
    if reading.format in LAYOUTS:
        return (
            f"{name} is not in the format {reading.format}, whose objects have the key "
            f"{LAYOUTS[reading.format].key}: {why}"
        )
    if reading.format != "auto" or reading.prompt_field != Reading.prompt_field:
        return f"{name} has no line with the key {reading.prompt_field}: {why}"
    return (
        f"{name} is in none of the formats that batch reads: {why}. Name the key of the prompt "
        f"with --prompt-field, or the format with --format: {', '.join(FORMATS[1:])}"
    )


def _warn_of_answers(name: str, content: dict[str, Any], format: str) -> None:
    messages = content.get("messages") if format in ("jsonl", "messages") else None
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        warnings.warn(
            f"the first conversation of {name} ends with a message of the assistant, which will be "
            "continued; leave it out to have the message before it answered",
            stacklevel=2,
        )


def _check_line_ends(name: str, line: bytes) -> None:
    if b"\r" in line.rstrip() and not line.endswith(b"\n"):
        raise JobError(
            f"the lines of {name} end in CR alone; convert it: tr '\\r' '\\n' < {name} > converted"
        )
