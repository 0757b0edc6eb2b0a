"""One input, one output, and what is left to do between them."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from args_fast.config import DecodingConfig
from args_fast.errors import JobError
from args_fast.jobs.journal import Journal, Pipe
from args_fast.jobs.layouts import Reading
from args_fast.jobs.lines import Item, entries
from args_fast.jobs.ownership import Input, claim, survey
from args_fast.jobs.records import Finished, finish
from args_fast.jobs.run import WINDOW, Decoder, as_completed, in_order
from args_fast.jobs.sources import Source
from args_fast.jobs.sources import opened as opened_source
from args_fast.jobs.streams import PIPE


@dataclass(frozen=True)
class Settings:
    """All that decides the records of an input.

    Attributes:
        lm, rm: names of the models.
        dtype: the type that they run in.
        defaults: the options of a line that names none.
        reading: how the lines are read.
        ordered: records stand in the order of their lines.
        scores: records hold the floats of every token.
        logits_processor: of the decoder, "model" or None.
    """

    lm: str
    rm: str
    dtype: str
    defaults: DecodingConfig
    reading: Reading = field(default_factory=Reading)
    ordered: bool = True
    scores: bool = False
    logits_processor: str | None = None


@dataclass
class Tally:
    """What a run has added so far.

    Attributes:
        written: records, of which ``errors`` are error records.
        tokens: new tokens.
        rewarded: texts in which the reward model had a say; ``reward_sum`` adds up their r([x, y]).
    """

    written: int = 0
    errors: int = 0
    tokens: int = 0
    rewarded: int = 0
    reward_sum: float = 0.0

    @property
    def mean_reward(self) -> float | None:
        return self.reward_sum / self.rewarded if self.rewarded else None

    def add(self, finished: Finished) -> None:
        self.written += 1
        self.errors += finished.is_error
        self.tokens += finished.tokens
        self.rewarded += finished.rewarded
        self.reward_sum += finished.reward


@dataclass
class Job:
    """An input and an output, both open.

    Attributes:
        settings: what decides the records, with the format that was found.
        path: the input's path; None where it is piped in.
        input: what the input is; None where it is piped in.
        source: the input, open.
        output: takes the records, and knows the lines that have one from earlier runs.
        cut: bytes of a torn record that an earlier run left, and that were cut off.
    """

    settings: Settings
    path: Path | None
    input: Input | None
    source: Source
    output: Journal | Pipe
    cut: int

    @property
    def resumable(self) -> bool:
        return self.input is not None and isinstance(self.output, Journal)

    @property
    def remaining(self) -> int | None:
        """The number of lines without a record; None where it cannot be known."""
        return None if self.input is None else self.input.lines - len(self.output.done)

    def lines(self) -> Iterator[tuple[int, Item]]:
        """The lines that have no record yet, with their numbers."""
        done = self.output.done
        return ((number, item) for number, item in self.source.items() if number not in done)

    def write(self, records: Iterable[Finished]) -> Iterator[Tally]:
        """Append records; yields after each what the run has added so far."""
        tally = Tally()
        for finished in records:
            self.output.append(finished.record)
            tally.add(finished)
            yield tally


def decode_lines(
    decoder: Decoder,
    lines: Iterable[tuple[int, Item]],
    settings: Settings,
    window: int = WINDOW,
) -> Iterator[Finished]:
    """The records of lines.

    Args:
        decoder: decodes them.
        lines: the lines with their numbers.
        settings: of the job that is open, whose format is not "auto".
        window: lines that may be begun after one that is not finished, where order matters.
    """
    asked = entries(lines, settings.defaults, settings.reading)
    if settings.ordered:
        outcomes = in_order(as_completed(decoder, asked, window))
    else:
        outcomes = (outcome for _, outcome in as_completed(decoder, asked))
    return (finish(outcome, scores=settings.scores) for outcome in outcomes)


@contextmanager
def opened(
    source: str,
    output: str,
    settings: Settings,
    *,
    restart: bool = False,
    retry_errors: bool = False,
) -> Iterator[Job]:
    """Open a job, a new one or one that was interrupted.

    Args:
        source: a file, or "-" for standard input.
        output: a file, or "-" for standard output. Only a job from a file to a file can be
            resumed.
        settings: what decides the records.
        restart: throw away what the output holds.
        retry_errors: decode the lines again whose record is an error. Their new records take the
            place of the old ones when the job is left without an error.

    Raises:
        JobError: the input is in no format that is known, or the output is in use, or holds
            something else.
        OSError: a file cannot be opened.
    """
    path = _regular(source)
    with opened_source(source, settings.reading) as items:
        settings = replace(settings, reading=items.reading)
        known = None if path is None else survey(path, items)
        if _is_pipe(output):
            with _pipe(output) as pipe:
                yield Job(settings, path, known, items, pipe, 0)
            return
        if path is not None and Path(output).exists() and path.samefile(output):
            raise JobError(f"{output} is the input too; name another output")
        journal = Journal(Path(output), ordered=settings.ordered)
        try:
            identity = _identity(settings, known)
            cut = claim(journal, identity, restart=restart, retry_errors=retry_errors)
            yield Job(settings, path, known, items, journal, cut)
            journal.settle()
        finally:
            journal.close()


def _identity(settings: Settings, known: Input | None) -> dict[str, Any] | None:
    return None if known is None else asdict(settings) | {"input": asdict(known)}


def _regular(source: str) -> Path | None:
    """A file that can be read twice; None for standard input, or a named pipe."""
    if source == PIPE or not Path(source).is_file():
        return None
    return Path(source)


def _is_pipe(output: str) -> bool:
    return output == PIPE or (os.path.exists(output) and not os.path.isfile(output))


@contextmanager
def _pipe(output: str) -> Iterator[Pipe]:
    if output == PIPE:
        if sys.stdout is None:
            raise JobError("standard output is closed; name a file for the records")
        yield Pipe(sys.stdout.buffer)
        return
    with open(output, "wb") as stream:
        yield Pipe(stream)
