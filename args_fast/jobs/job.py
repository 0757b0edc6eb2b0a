"""One input, one output, and what is left to do between them."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from args_fast.config import DecodingConfig
from args_fast.errors import JobError
from args_fast.jobs.journal import Journal, Pipe
from args_fast.jobs.lines import entries, numbered
from args_fast.jobs.ownership import Input, claim, survey
from args_fast.jobs.records import Finished, finish
from args_fast.jobs.run import WINDOW, Decoder, as_completed, in_order

PIPE = "-"  # standard input or output


@dataclass(frozen=True)
class Settings:
    """All that decides the records of an input.

    Attributes:
        lm, rm: names of the models.
        dtype: that they run in.
        defaults: the options of a line that names none.
        raw: prompts are taken as they are, without a chat template.
        ordered: records stand in the order of their lines.
        scores: with the floats of every token.
    """

    lm: str
    rm: str
    dtype: str
    defaults: DecodingConfig
    raw: bool = False
    ordered: bool = True
    scores: bool = False


@dataclass
class Tally:
    """What a run has added so far.

    Attributes:
        written: records, of which ``errors`` tell an error.
        tokens: new ones.
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
        if finished.reward is not None:
            self.rewarded += 1
            self.reward_sum += finished.reward


@dataclass
class Job:
    """An input and an output, both open.

    Attributes:
        settings: what decides the records.
        path: of the input; None where it is piped in.
        input: what the input is; None where it is piped in.
        output: takes the records, and knows the lines that have one from earlier runs.
        cut: bytes of a torn record that an earlier run left, and that were cut off.
    """

    settings: Settings
    path: Path | None
    input: Input | None
    output: Journal | Pipe
    cut: int
    _stream: BinaryIO

    @property
    def resumable(self) -> bool:
        return self.input is not None and isinstance(self.output, Journal)

    @property
    def remaining(self) -> int | None:
        """Lines without a record; None where nobody can know."""
        return None if self.input is None else self.input.lines - len(self.output.done)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that have no record yet, with their numbers."""
        done = self.output.done
        return ((number, line) for number, line in numbered(self._stream) if number not in done)

    def write(self, records: Iterable[Finished]) -> Iterator[Tally]:
        """Append records, and tell after each how far it is."""
        tally = Tally()
        for finished in records:
            self.output.append(finished.record)
            tally.add(finished)
            yield tally


def decode_lines(
    decoder: Decoder,
    lines: Iterable[tuple[int, bytes]],
    settings: Settings,
    encode: Callable[[str], list[int]],
    window: int = WINDOW,
) -> Iterator[Finished]:
    """The records of lines.

    Args:
        lines: with their numbers.
        encode: a prompt's ids.
        window: lines that may be begun behind one that is not finished, where order matters.
    """
    asked = entries(lines, settings.defaults, encode)
    if settings.ordered:
        outcomes = in_order(as_completed(decoder, asked, window))
    else:
        outcomes = (outcome for _, outcome in as_completed(decoder, asked))
    return (finish(outcome, scores=settings.scores) for outcome in outcomes)


@contextmanager
def opened(source: str, output: str, settings: Settings, *, restart: bool = False) -> Iterator[Job]:
    """Open a job, a new one or one that was interrupted.

    Args:
        source: a file of JSON lines, or "-" for standard input.
        output: a file, or "-" for standard output. Only from a file to a file is a job that can
            be gone on with.
        restart: throw away what the output holds.

    Raises:
        JobError: the output is in use, or holds something else.
        OSError: a file cannot be opened.
    """
    path = _regular(source)
    with open(source, "rb") if source != PIPE else _borrowed() as stream:
        known = None if path is None else survey(path)
        if _is_pipe(output):
            with _pipe(output) as pipe:
                yield Job(settings, path, known, pipe, 0, stream)
            return
        if path is not None and Path(output).exists() and path.samefile(output):
            raise JobError(f"{output} is the input too; name another output")
        journal = Journal(Path(output), ordered=settings.ordered)
        try:
            cut = claim(journal, _identity(settings, known), restart=restart)
            yield Job(settings, path, known, journal, cut, stream)
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
def _borrowed() -> Iterator[BinaryIO]:
    yield sys.stdin.buffer


@contextmanager
def _pipe(output: str) -> Iterator[Pipe]:
    if output == PIPE:
        yield Pipe(sys.stdout.buffer)
        return
    with open(output, "wb") as stream:
        yield Pipe(stream)
