"""The input of a job as numbered items, whatever kind of file it is.

Lines stay bytes until they are read one by one; rows of a table and elements of a JSON array come
as they are. gzip is undone on the way. What the file is, and in which format, is found out before
any model is loaded.
"""

import csv
import gzip
import io
import json
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from args_fast.errors import JobError, LineError
from args_fast.jobs.layouts import FORMATS, LAYOUTS, Reading, detect, fits
from args_fast.jobs.lines import MAX_LINE, OPTIONS, Item, numbered, parse

PIPE = "-"  # standard input
TRIED = 100  # lines that are searched for the first that tells the format
SEARCHED = 64 * 2**20  # bytes of them

PEEKED = 8  # bytes that tell what kind of file it is
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
# What the first bytes say of files that other programs read.
ELSEWHERE = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip file",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
    b"BZh": "compressed by bzip2",
}
FREE = ("auto", "jsonl", "csv")  # formats whose prompt may have any key
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


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
        try:
            yield from self._items()
        except DAMAGE as error:
            raise JobError(f"{self._name} is damaged: {error}") from error


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
    with _binary(name) as binary:
        try:
            stream, begin = _peeked(binary)
            if is_packed := begin.startswith(GZIP):
                stream, begin = _peeked(gzip.GzipFile(fileobj=stream))
            _check_bytes(name, begin)
            source = _recognise(name, Held(stream), reading)
        except DAMAGE as error:
            raise JobError(f"{name} is damaged: {error}") from error
        yield replace(source, is_plain=source.is_plain and not is_packed)


class Held:
    """A stream that can be read again from its beginning until it is released, to recognise it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._held = io.BytesIO()
        self._holds = True

    def readline(self, size: int = -1, /) -> bytes:
        line = self._held.readline(size)
        if not line.endswith(b"\n") and len(line) != size:
            new = self._stream.readline(size - len(line) if size >= 0 else -1)
            if self._holds:
                self._held.write(new)
            line += new
        return line

    def rest(self) -> bytes:
        """All that was not read yet."""
        return self._held.read() + self._stream.read()

    @property
    def size(self) -> int:
        """The number of bytes that were read so far, and can be read again."""
        return self._held.getbuffer().nbytes

    def rewind(self, *, release: bool = False) -> None:
        """Begin again; after a release for the last time."""
        self._held.seek(0)
        self._holds = not release


@contextmanager
def _binary(name: str) -> Iterator[BinaryIO]:
    if name != PIPE:
        with open(name, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise JobError("standard input is closed; pipe lines in, or name a file")
    else:
        yield sys.stdin.buffer


def _peeked(stream: Any) -> tuple[io.BufferedReader, bytes]:
    """The stream, and its first bytes, which it still gives."""
    begin = stream.read(PEEKED)
    return io.BufferedReader(_Rejoined(begin, stream)), begin


class _Rejoined(io.RawIOBase):
    """Some bytes, and after them a stream."""

    def __init__(self, begin: bytes, rest: Any) -> None:
        self._begin = begin
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._begin[: len(buffer)]
        self._begin = self._begin[len(piece) :]
        piece = piece or self._rest.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _check_bytes(name: str, begin: bytes) -> None:
    for mark, kind in ELSEWHERE.items():
        if begin.startswith(mark):
            raise JobError(f"{name} is {kind}; batch reads text files, also compressed by gzip")
    coding = None
    if begin.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        coding = "UTF-32"
    elif begin.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in begin:
        coding = "UTF-16"
    if coding:
        raise JobError(
            f"{name} is {coding}, and batch reads UTF-8; convert it: iconv -f {coding} -t UTF-8 "
            f"{name} > converted"
        )


def _check_line_ends(name: str, first: bytes) -> None:
    if b"\r" in first.rstrip() and not first.endswith(b"\n"):
        raise JobError(
            f"the lines of {name} end in CR alone; convert it: tr '\\r' '\\n' < {name} > converted"
        )


# ---- what it is ----------------------------------------------------------------------------------


def _recognise(name: str, stream: Held, reading: Reading) -> Source:
    """What a file is and how it is read. Raises JobError where it is in no format."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if reading.format == "csv" or (reading.format == "auto" and suffix in (".csv", ".tsv")):
        delimiter = _delimiter(name, stream, reading)
        stream.rewind(release=True)
        reading = replace(reading, format="csv")
        return Source(reading, False, name, lambda: enumerate(_rows(name, stream, delimiter), 1))
    first = None if reading.format == "text" else next(numbered(stream), None)
    stream.rewind()
    if first is not None and first[1].removeprefix(BOM).lstrip().startswith(b"["):
        elements = list(enumerate(_array(name, stream), 1))
        reading = replace(reading, format=_format(name, elements, reading))
        return Source(reading, False, name, lambda: elements)
    if first is not None:
        _check_line_ends(name, first[1])
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
            found = detect(content, reading.prompt_field)
        else:
            found = reading.format if fits(content, reading) else None
        if found:
            _warn_of_answers(name, content, found)
            return found
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


def _warn_of_answers(name: str, content: dict[str, Any], found: str) -> None:
    messages = content.get("messages") if found in ("jsonl", "messages") else None
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        warnings.warn(
            f"the first conversation of {name} ends with a message of the assistant, which will be "
            "continued; leave it out to have the message before it answered",
            stacklevel=2,
        )


# ---- arrays and tables ---------------------------------------------------------------------------


def _array(name: str, stream: Held) -> list[Any]:
    try:
        content = json.loads(stream.rest().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise JobError(f"{name} begins as a JSON array and is not one: {error}") from error
    assert isinstance(content, list)  # it begins with a bracket
    return content


def _text_lines(name: str, stream: Held) -> Iterator[str]:
    """Lines of a table; bytes that are not UTF-8 are found where they are used."""
    is_first = True
    while line := stream.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise JobError(f"{name} has a line longer than {MAX_LINE} bytes; no prompt is")
        line = line.removeprefix(BOM) if is_first else line
        is_first = False
        yield line.decode("utf-8", "surrogateescape")


def _delimiter(name: str, stream: Held, reading: Reading) -> str:
    """What separates the columns. Raises JobError where none of them holds the prompt."""
    header = next(_text_lines(name, stream), "")
    delimiter = max(",;\t", key=header.count)
    columns = next(csv.reader([header], delimiter=delimiter), [])
    if reading.prompt_field not in columns:
        raise JobError(
            f"{name} has the columns {', '.join(columns) or '(none)'}, and none is called "
            f"{reading.prompt_field}; name the one that holds the prompt with --prompt-field"
        )
    return delimiter


def _rows(name: str, stream: Held, delimiter: str) -> Iterator[Item]:
    csv.field_size_limit(MAX_LINE)
    rows = csv.DictReader(_text_lines(name, stream), delimiter=delimiter)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise JobError(f"line {rows.line_num} of {name} is not CSV: {error}") from error
        if row is None:
            return
        if None in row:
            yield LineError(f"the row has more cells than there are columns: {row[None]}")  # type: ignore[call-overload]
        else:
            yield {key: value for key, cell in row.items() if (value := _cell(key, cell)) != ""}


def _cell(column: str, cell: str | None) -> Any:
    """A cell as it is; of an option as JSON, where it is that."""
    if not cell or column not in OPTIONS:
        return cell or ""
    try:
        return json.loads(cell)
    except ValueError:
        return cell
