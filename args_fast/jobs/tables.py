"""Inputs that are not lines of JSON: an array, or a table of comma-separated values."""

import csv
import json
from collections.abc import Iterator
from typing import Any

from args_fast.errors import JobError, LineError
from args_fast.jobs.layouts import Reading
from args_fast.jobs.lines import MAX_LINE, OPTIONS, Item
from args_fast.jobs.streams import Held

BOM = b"\xef\xbb\xbf"


def array(name: str, stream: Held) -> list[Any]:
    """The elements of a JSON array, which is read whole. Raises JobError where it is not one."""
    try:
        content = json.loads(stream.read().decode("utf-8-sig"))
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


def delimiter(name: str, stream: Held, reading: Reading) -> str:
    """What separates the columns. Raises JobError where none of them holds the prompt."""
    header = next(_text_lines(name, stream), "")
    separator = max(",;\t", key=header.count)
    columns = next(csv.reader([header], delimiter=separator), [])
    if reading.prompt_field not in columns:
        raise JobError(
            f"{name} has the columns {', '.join(columns) or '(none)'}, and none is called "
            f"{reading.prompt_field}; name the one that holds the prompt with --prompt-field"
        )
    return separator


def rows(name: str, stream: Held, separator: str) -> Iterator[Item]:
    """The rows of a table as objects, a bad one as its error. Raises JobError where it is not a
    table."""
    csv.field_size_limit(MAX_LINE)
    table = csv.DictReader(_text_lines(name, stream), delimiter=separator)
    while True:
        try:
            row = next(table, None)
        except csv.Error as error:
            raise JobError(f"line {table.line_num} of {name} is not CSV: {error}") from error
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
