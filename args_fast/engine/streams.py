"""Where a reward's work runs while the language model's continues."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """Runs the work of rewards next to that of the language model. Where they have CUDA devices of
    their own that takes nothing; on one device it takes a second stream; on the CPU one runs before
    the other.

        with side():  # after everything that has been enqueued so far
            ...
        side.join()  # what is enqueued from now on comes after it too

    Memory needs no further care: a tensor made inside may be used after ``join``, because the next
    work inside begins after that use; one made outside may be used inside if it is kept until
    ``join``.

    Args:
        lm: the device of the language model.
        rewards: the devices of the rewards.
    """

    def __init__(self, lm: torch.device, rewards: Iterable[torch.device]) -> None:
        self._devices = {lm, *rewards}
        self._stream: torch.cuda.Stream | None = None
        if lm.type == "cuda" and lm in set(rewards):
            # A reward's kernels are short and many: they must not wait in line.
            self._stream = torch.cuda.Stream(lm, priority=-1)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def after(self, event: torch.cuda.Event) -> None:
        """What is enqueued from now on, for any model, comes after this event too: the caller's
        stream may be another one than the last time."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).wait_event(event)

    def join(self) -> None:
        """Between two devices every copy waits for both, so there is nothing to do."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
