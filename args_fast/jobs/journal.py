"""The output of a job: appended to, durable, and the only record of what is done."""

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

from args_fast.errors import JobError
from args_fast.jobs.records import head

SYNC_SECONDS = 1.0  # of writing, which a power failure can cost; a killed process costs nothing


class Journal:
    """An output file, locked: what is appended survives the process, and what was appended before
    the last SYNC_SECONDS of writing survives the machine.

    ``done`` holds the input lines that have a record, one bit each.

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
        self.errors = 0
        self._last = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._synced = time.monotonic()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise JobError(f"another process is writing to {path}; let it finish") from error

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def clear(self) -> None:
        """Begin anew."""
        os.ftruncate(self._file, 0)
        os.fsync(self._file)

    def recover(self) -> int:
        """Learn what is done, and cut off a last line that is no whole record.

        Returns the number of bytes that were cut. Raises JobError where any other line is none.
        """
        whole = 0  # bytes
        with open(self.path, "rb") as file:
            for line in file:
                found = head(line)
                if found is None or b"\0" in line:  # a file may grow before its content arrives
                    break
                self._note(*found)
                whole += len(line)
            if file.read(1):
                raise JobError(
                    f"line {len(self.done) + 1} of {self.path} is no record of a job, and "
                    "others follow it; mend the file, or begin anew with --restart"
                )
        cut = self.size - whole
        if cut:
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        return cut

    def append(self, record: bytes) -> None:
        """Add one record. Raises JobError where its line has one already."""
        found = head(record)
        assert found is not None
        self._note(*found)
        rest = memoryview(record)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _note(self, line: int, is_error: bool) -> None:
        if line in self.done or (self.ordered and line < self._last):
            raise JobError(
                f"{self.path} holds the record of line {line} twice, or not in its place; begin "
                "anew with --restart"
            )
        self.done.add(line)
        self.errors += is_error
        self._last = line


class Pipe:
    """An output that cannot be gone on with, such as standard output."""

    def __init__(self, stream: BinaryIO) -> None:
        self.done = LineSet()
        self.errors = 0
        self._stream = stream

    def append(self, record: bytes) -> None:
        found = head(record)
        assert found is not None
        line, is_error = found
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

    def __contains__(self, line: int) -> bool:
        byte, bit = divmod(line, 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def __len__(self) -> int:
        return self._count
