"""Whether an output belongs to the job that wants to resume it: a small file next to it says."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from args_fast.config import DecodingConfig
from args_fast.errors import JobError
from args_fast.jobs.journal import Journal, sync_folder
from args_fast.jobs.layouts import Reading
from args_fast.jobs.sources import Source, opened

BLOCK = 2**20


@dataclass(frozen=True)
class Input:
    """A file, by its content: wherever it lies, it is the same input. ``lines`` are those that are
    not blank."""

    sha256: str
    bytes: int
    lines: int


def survey(path: Path, source: Source) -> Input:
    """Read a file once, in constant memory, unless it is not a file of plain lines: then a second
    time, to count what it holds.

    Raises JobError where it is damaged.
    """
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
    lines += filled
    if not source.is_plain:
        with opened(str(path), source.reading) as again:
            lines = sum(1 for _ in again.items())
    return Input(digest.hexdigest(), size, lines)


def sidecar(output: Path) -> Path:
    """The file that says which job an output belongs to."""
    return output.with_name(output.name + ".job.json")


def claim(
    journal: Journal, job: dict[str, Any] | None, *, restart: bool, retry_errors: bool = False
) -> int:
    """Make the output this job's: a new one, or one that it began.

    Args:
        journal: the output.
        job: all that decides what is written, as JSON values; None for a job that cannot be
            resumed (its input is a pipe).
        restart: throw away what the output holds.
        retry_errors: lines whose record is an error are not done.

    Returns:
        The number of bytes of a torn record that were cut off.

    Raises:
        JobError: the output holds something else, or the work of another job.
    """
    note = sidecar(journal.path)
    if restart:
        journal.clear()
    if journal.size == 0:
        if job is None:
            note.unlink(missing_ok=True)
        else:
            _write(note, job)
        return 0
    if job is None:
        raise JobError(
            f"{journal.path} is not empty, and a job whose input is piped in cannot be resumed; "
            "name another output, or throw away what it holds with --restart"
        )
    before = _read(note, journal.path)
    # Through JSON, as the other side went.
    differing = _differences(before, json.loads(json.dumps(job)))
    if differing:
        raise JobError(
            f"{journal.path} belongs to another job ({'; '.join(differing)}); give the same "
            "options again to resume it, name another output, or throw away what it holds with "
            "--restart"
        )
    return journal.recover(retry_errors=retry_errors)


def _read(note: Path, output: Path) -> dict[str, Any]:
    """What the file next to an output says, in the words of this version."""
    try:
        before = json.loads(note.read_text())
    except FileNotFoundError:
        raise JobError(
            f"{output} is not empty, and there is no {note.name} that says that a job wrote it; "
            "name another output, or throw away what it holds with --restart"
        ) from None
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise JobError(
            f"{note} does not say which job {output} belongs to; repair it, or throw away what "
            "the output holds with --restart"
        )
    if before.pop("raw", True) is False:
        raise JobError(
            f"{output} was begun by an earlier version of args-fast, which wrapped prompts in the "
            "chat template; finish it with that version, or start over with --restart (and --chat)"
        )
    # What an earlier version did not write had the values that are the defaults now.
    defaults = before.get("defaults")
    if isinstance(defaults, dict):
        before["defaults"] = asdict(DecodingConfig()) | defaults
    return {"reading": asdict(Reading())} | before


def _differences(before: dict[str, Any], now: dict[str, Any], inside: str = "") -> list[str]:
    differing = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            differing += _differences(old, new, f"{inside}{name}.")
        elif old != new:
            shown = (json.dumps(value)[:60] for value in (old, new))
            differing.append(f"{inside}{name} was {' and is '.join(shown)}")
    return differing


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, whatever happens."""
    new = path.with_name(path.name + ".new")
    with open(new, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync_folder(path)
