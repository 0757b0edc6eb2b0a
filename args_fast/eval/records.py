"""What a run has done, as files that survive a kill: one JSON object a line, appended and read."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from args_fast.errors import EvaluationError

Key = tuple[Any, ...]


class Records:
    """A file of records, each named by the values of some of its fields.

    Args:
        path: created where it does not exist; a torn last line is cut off.
        fields: the fields that name a record.

    Raises:
        EvaluationError: another process writes to the file, or a line within it is not a record.
    """

    def __init__(self, path: Path, fields: tuple[str, ...]) -> None:
        self.path = path
        self._fields = fields
        self._records: dict[Key, dict[str, Any]] = {}
        self._file = open(path, "a+b")  # noqa: SIM115 (close() closes it)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise EvaluationError(f"another process is writing to {path}; let it finish") from error
        self._recover()

    def _recover(self) -> None:
        self._file.seek(0)
        whole = 0  # bytes
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                self._records[self._key(record)] = record
            except (ValueError, KeyError, TypeError) as error:
                self.close()
                raise EvaluationError(
                    f"line {number} of {self.path} is not a record of a run; restart the run with "
                    "--restart"
                ) from error
            whole += len(line)
        self._file.truncate(whole)

    def _key(self, record: dict[str, Any]) -> Key:
        return tuple(record[field] for field in self._fields)

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records to the file. NaN is refused: it is not JSON."""
        lines = []
        for record in records:
            self._records[self._key(record)] = record
            lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.write("".join(lines).encode())
        self._file.flush()

    def get(self, *key: Any) -> dict[str, Any] | None:
        """The record of that name, if there is one."""
        return self._records.get(key)

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Release the file. The records can still be read."""
        self._file.close()

    def __enter__(self) -> "Records":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step, so that a kill leaves the old one or the new one."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(draft, path)


def settle(path: Path, settings: dict[str, Any]) -> None:
    """Write what a folder's records depend on, or compare it with what is written there.

    Raises:
        EvaluationError: the folder holds a run with other settings.
    """
    settings = json.loads(json.dumps(settings))  # as they read back
    if not path.exists():
        write_json(path, settings)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(before, dict):
        raise EvaluationError(f"{path} does not hold the settings of a run")
    for name in {**before, **settings}:
        if before.get(name) != settings.get(name):
            raise EvaluationError(
                f"{path.parent} holds a run with {name} = {before.get(name)!r}, and now it is "
                f"{settings.get(name)!r}; take another --out, or replace that run with --restart"
            )
