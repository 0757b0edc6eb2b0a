"""The output of a job: appended to, durable, and the only record of what is done."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from args_fast.errors import JobError
from args_fast.jobs.records import head

SYNC_SECONDS = 1.0  # of writing, which a power failure can cost; a killed process costs nothing


class Journal:
    """An output file, locked: what is appended survives the process, and what was appended before
    the last SYNC_SECONDS of writing survives the machine.

    A line whose record is an error may get another record later, which counts in its place;
    ``settle`` then puts it there.

    Attributes:
        done: the input lines that need no more work, one bit each.
        failed: the input lines whose last record is an error.
        moved: for the lines that got a later record, where in the file that is.

    Args:
        path: created where it does not exist.
        ordered: whether line numbers have to ascend.

    Raises:
        JobError: another process writes to it.
    """

    def __init__(self, path: Path, *, ordered: bool) -> None:
        self.path = path
        self.ordered = ordered
        self.done = LineSet()
        self.failed = LineSet()
        self.moved: dict[int, int] = {}
        self._last = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._synced = time.monotonic()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that settled its output has put another file here since it was opened.
            if not os.path.samestat(os.fstat(self._file), os.stat(path)):
                raise BlockingIOError
        except OSError as error:
            os.close(self._file)
            raise JobError(f"another process is writing to {path}; let it finish") from error

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    @property
    def errors(self) -> int:
        """The number of lines whose last record is an error."""
        return len(self.failed)

    def clear(self) -> None:
        """Empty the file."""
        os.ftruncate(self._file, 0)
        os.fsync(self._file)

    def recover(self, *, retry_errors: bool = False) -> int:
        """Learn what is done, and cut off a last line that is not a whole record.

        Args:
            retry_errors: lines whose record is an error are not done.

        Returns:
            The number of bytes that were cut off.

        Raises:
            JobError: any other line is not a record.
        """
        whole = lines = 0
        with open(self.path, "rb") as file:
            for line in file:
                entry = head(line)
                if entry is None or b"\0" in line:  # a file may grow before its content arrives
                    break
                self._note(*entry, whole)
                whole += len(line)
                lines += 1
            if file.read(1):
                raise JobError(
                    f"line {lines + 1} of {self.path} is not a record of a job, and others follow "
                    "it; repair the file, or start over with --restart"
                )
        cut = self.size - whole
        if cut:
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        if retry_errors:
            for failed in self.failed:
                self.done.discard(failed)
        return cut

    def append(self, record: bytes) -> None:
        """Add one record. Raises JobError where its line has one already that is not an error."""
        entry = head(record)
        assert entry is not None
        self._note(*entry, self.size)
        unwritten = memoryview(record)
        while unwritten:
            unwritten = unwritten[os.write(self._file, unwritten) :]
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def settle(self) -> None:
        """Put every record that came later in the place of the error that it replaces. The file is
        written again next to itself, and takes its own place in one step."""
        if not self.moved:
            return
        path = self.path.resolve()
        new = path.with_name(path.name + ".new")
        place: dict[int, int | None] = dict(self.moved)
        with open(path, "rb") as old, open(path, "rb") as later, open(new, "wb") as file:
            shutil.copymode(path, new)
            for record in old:
                entry = head(record)
                assert entry is not None
                line, _ = entry
                if line not in place:
                    file.write(record)
                elif (begin := place[line]) is not None:
                    later.seek(begin)
                    file.write(later.readline())
                    place[line] = None
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        sync_folder(path)
        self.moved.clear()

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _note(self, line: int, is_error: bool, begin: int) -> None:
        """Take a record into account that begins at this byte."""
        if line in self.failed:
            self.moved[line] = begin
        elif line in self.done or (self.ordered and line < self._last):
            raise JobError(
                f"{self.path} holds the record of line {line} twice, or not in its place; start "
                "over with --restart"
            )
        self.done.add(line)
        (self.failed.add if is_error else self.failed.discard)(line)
        self._last = max(self._last, line)


class Pipe:
    """An output that cannot be resumed, such as standard output."""

    def __init__(self, stream: BinaryIO) -> None:
        self.done = LineSet()
        self.errors = 0
        self._stream = stream

    def append(self, record: bytes) -> None:
        entry = head(record)
        assert entry is not None
        line, is_error = entry
        self.done.add(line)
        self.errors += is_error
        self._stream.write(record)
        self._stream.flush()


class LineSet:
    """A set of line numbers in one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def add(self, line: int) -> None:
        byte, bit = divmod(line, 8)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._count += not self._bits[byte] >> bit & 1
        self._bits[byte] |= 1 << bit

    def discard(self, line: int) -> None:
        if line in self:
            self._bits[line // 8] &= ~(1 << line % 8)
            self._count -= 1

    def __contains__(self, line: int) -> bool:
        byte, bit = divmod(line, 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def __iter__(self) -> Iterator[int]:
        for byte, bits in enumerate(self._bits):
            for bit in range(8 if bits else 0):
                if bits >> bit & 1:
                    yield 8 * byte + bit

    def __len__(self) -> int:
        return self._count


def sync_folder(path: Path) -> None:
    """Force to the disk which files the folder of this one holds."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
