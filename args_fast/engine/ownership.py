"""Which thread may use an engine: one at a time, or only its owner."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from args_fast.errors import DecoderBusyError


class Ownership:
    """A lock for threads that take turns, and an owner that excludes the others.

    Attributes:
        owner: the only thread that may use the engine; None lets threads take turns.
    """

    def __init__(self) -> None:
        self.owner: threading.Thread | None = None
        self.lock = threading.RLock()
        self._process = os.getpid()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use the engine. Raises DecoderBusyError where this thread must not."""
        if os.getpid() != self._process:
            raise DecoderBusyError(
                "this decoder was made in another process; make one in each process, after the "
                "fork, or send requests to an AsyncArgsDecoder in the process that made it"
            )
        with self.lock:
            if self.owner not in (None, threading.current_thread()):
                raise DecoderBusyError(
                    "an AsyncArgsDecoder has this decoder: ask that AsyncArgsDecoder, or close it "
                    "first"
                )
            yield
