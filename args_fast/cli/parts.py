"""How far the parts of a long piece of work are, on standard error."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from args_fast.cli.console import note, notes

if TYPE_CHECKING:
    from args_fast.eval.plan import Report

QUIET_SECONDS = 30.0  # between two lines of progress where there is no terminal


@contextmanager
def progress() -> Iterator["Report"]:
    """Shows on standard error how far each part of the work is, and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    tasks: dict[str, Any] = {}
    began: dict[str, tuple[float, int]] = {}
    told = time.monotonic()
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as bar:

        def report(part: str, done: int, total: int) -> None:
            nonlocal told
            if part not in tasks:
                tasks[part] = bar.add_task(part, total=total, completed=done)
                began[part] = time.monotonic(), done
            bar.update(tasks[part], completed=done)
            start, before = began[part]
            now = time.monotonic()
            if notes.is_terminal or done == before or now - told < QUIET_SECONDS:
                return
            told = now
            left = (now - start) / (done - before) * (total - done)
            note(f"{part}: {done} of {total}, about {left / 60:.0f} min left")

        yield report
