"""The bytes of a job's input: from a file or a pipe, unpacked, and known to be text."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from args_fast.errors import JobError

PIPE = "-"  # standard input
PEEKED = 8  # bytes that tell what kind of file it is
GZIP = b"\x1f\x8b"
# What the first bytes say of files that other programs read.
ELSEWHERE = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip file",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
    b"BZh": "compressed by bzip2",
}


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

    def read(self) -> bytes:
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
def opened(name: str) -> Iterator[tuple[Held, bool]]:
    """The bytes of a file, or of standard input, and whether they were compressed.

    Raises:
        JobError: it is not text in UTF-8, as far as its first bytes tell.
        OSError: it cannot be opened.
    """
    with _binary(name) as binary, undamaged(name):
        stream, begin = _peeked(binary)
        is_packed = begin.startswith(GZIP)
        if is_packed:
            stream, begin = _peeked(gzip.GzipFile(fileobj=stream))
        _check_bytes(name, begin)
        yield Held(stream), is_packed


@contextmanager
def undamaged(name: str) -> Iterator[None]:
    """Turns what a damaged gzip file raises into a JobError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise JobError(f"{name} is damaged: {error}") from error


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

    def __init__(self, begin: bytes, stream: Any) -> None:
        self._begin = begin
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._begin[: len(buffer)]
        self._begin = self._begin[len(piece) :]
        piece = piece or self._stream.read1(len(buffer))
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
