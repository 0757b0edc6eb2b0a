"""Where the reward model's work runs while the language model's goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """Runs work of the reward model beside that of the language model. Where each has a CUDA device
    of its own that needs nothing; on one device it takes a second stream; on the CPU the one runs
    before the other.

        with beside():  # behind all that has been enqueued so far
            ...
        beside.join()  # what is enqueued from now on is behind it too

    Memory needs no further care: a tensor made inside may be used behind ``join``, because the next
    work inside begins behind that use; one made outside may be used inside if it is kept until
    ``join``.

    Args:
        lm, rm: the devices of the two models.
    """

    def __init__(self, lm: torch.device, rm: torch.device) -> None:
        self._devices = {lm, rm}
        self._stream: torch.cuda.Stream | None = None
        if lm == rm and lm.type == "cuda":
            # The reward model's kernels are short and many: they are not to wait in line.
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
        """What is enqueued from now on, for either model, is behind this too: the caller's stream
        may be another one than the last time."""
        for device in self._devices:
            torch.cuda.current_stream(device).wait_event(event)

    def join(self) -> None:
        """Between two devices every copy waits for both, so there is nothing to do."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
