"""Whether an output belongs to the job that wants to go on with it: a small file beside it says."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args_fast.errors import JobError
from args_fast.jobs.journal import Journal

BLOCK = 2**20


@dataclass(frozen=True)
class Input:
    """A file, by its content: wherever it lies, it is the same input. ``lines`` are those that are
    not blank."""

    sha256: str
    bytes: int
    lines: int


def survey(path: Path) -> Input:
    """Read a file once, in constant memory."""
    digest = hashlib.sha256()
    size = lines = 0
    filled = False
    with open(path, "rb") as file:
        while piece := file.readline(BLOCK):
            digest.update(piece)
            size += len(piece)
            filled |= not piece.isspace()
            if piece.endswith(b"\n"):
                lines += filled
                filled = False
    return Input(digest.hexdigest(), size, lines + filled)


def sidecar(output: Path) -> Path:
    """The file that says which job an output belongs to."""
    return output.with_name(output.name + ".job.json")


def claim(journal: Journal, job: dict[str, Any] | None, *, restart: bool) -> int:
    """Make the output this job's: a new one, or one that it began.

    Args:
        job: all that decides what is written, as JSON values; None for a job that cannot be gone
            on with (its input is a pipe).
        restart: throw away what the output holds.

    Returns:
        The number of bytes of a torn record that were cut off.

    Raises:
        JobError: the output holds something else, or the work of another job.
    """
    beside = sidecar(journal.path)
    if restart:
        journal.clear()
    if journal.size == 0:
        if job is None:
            beside.unlink(missing_ok=True)
        else:
            _write(beside, job)
        return 0
    if job is None:
        raise JobError(
            f"{journal.path} is not empty, and an input that is piped in cannot be gone on with; "
            "name another output, or throw away what it holds with --restart"
        )
    try:
        before = json.loads(beside.read_text())
    except FileNotFoundError:
        raise JobError(
            f"{journal.path} is not empty, and no {beside.name} beside it says that a job wrote "
            "it; name another output, or throw away what it holds with --restart"
        ) from None
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise JobError(
            f"{beside} does not say which job {journal.path} belongs to; mend it, or throw away "
            "what the output holds with --restart"
        )
    # Through JSON, as the other side went.
    differing = _differences(before, json.loads(json.dumps(job)))
    if differing:
        raise JobError(
            f"{journal.path} belongs to another job ({'; '.join(differing)}); ask for the same "
            "again to go on with it, name another output, or throw away what it holds with "
            "--restart"
        )
    return journal.recover()


def _differences(before: dict[str, Any], now: dict[str, Any], inside: str = "") -> list[str]:
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{inside}{name}.")
        elif old != new:
            shown = (json.dumps(value)[:60] for value in (old, new))
            found.append(f"{inside}{name} was {' and is '.join(shown)}")
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, whatever happens."""
    new = path.with_name(path.name + ".new")
    with open(new, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
