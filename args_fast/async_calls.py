"""Between the engine's thread and the event loops: what a task asked for, and its way back."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from args_fast.config import DecodingConfig
from args_fast.engine.request import Request
from args_fast.generation import Generation, Token
from args_fast.prompts import Prompt

Delivery = list[Token] | list[Generation] | BaseException


class Call:
    """One thing that a task asked for. ``requests`` are the thread's.

    Args:
        prompt, config: of the decode.
        slots: one of them is this call's until it frees it.
        receive: takes, in the present event loop, what the thread has decoded.
        streamed: whether it gets its tokens step by step.

    Attributes:
        delivered, taken: tokens that the thread has sent, and that the task has taken; each is
            written by one of the two only.
        paused: whether the thread has stopped decoding for a reader that does not read.
    """

    def __init__(
        self,
        prompt: Prompt,
        config: DecodingConfig,
        slots: asyncio.Semaphore,
        receive: Callable[[Delivery], None],
        *,
        streamed: bool,
    ) -> None:
        self.prompt = prompt
        self.config = config
        self.receive = receive
        self.streamed = streamed
        self.loop = asyncio.get_running_loop()
        self.requests: list[Request] = []
        self.delivered = self.taken = 0
        self.paused = False
        self._slots: asyncio.Semaphore | None = slots

    @property
    def unread(self) -> int:
        """Tokens that were sent and not taken."""
        return self.delivered - self.taken

    def free_slot(self) -> None:
        """Let another call begin; from the task."""
        if self._slots is not None:
            self._slots.release()
            self._slots = None


class Mail:
    """What the thread has for the event loops, sent together so that a step wakes each loop once;
    a wake-up for each call would cost the thread a system call and the lock of the interpreter."""

    def __init__(self) -> None:
        self._waiting: defaultdict[asyncio.AbstractEventLoop, list[Callable[[], None]]]
        self._waiting = defaultdict(list)

    def deliver(self, call: Call, delivery: Delivery) -> None:
        """Something for the call's task."""
        self._waiting[call.loop].append(partial(call.receive, delivery))

    def free_slot(self, call: Call) -> None:
        """Let another call begin."""
        self._waiting[call.loop].append(call.free_slot)

    def send(self) -> None:
        """Have the event loops take what there is for them."""
        for loop, parts in self._waiting.items():
            with suppress(RuntimeError):  # on a loop that has been closed no task waits
                loop.call_soon_threadsafe(_take, parts)
        self._waiting.clear()


def _take(parts: list[Callable[[], None]]) -> None:
    for part in parts:
        part()
