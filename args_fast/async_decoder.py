"""The decoder for many users at once: one engine in a thread, any number of tasks that wait."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Many
from contextlib import suppress

from args_fast.config import DecodingConfig
from args_fast.decoder import ArgsDecoder
from args_fast.encoding import Prompt
from args_fast.engine.request import Request
from args_fast.errors import ConfigError, DecoderClosedError
from args_fast.generation import Generation, Token

CLOSED = "the decoder has been closed; open another AsyncArgsDecoder"

Delivery = list[Token] | list[Generation] | BaseException


class _Request:
    """What a task asked for. ``sequences`` are the thread's; ``deliver`` reaches the task."""

    def __init__(self, prompt: Prompt, config: DecodingConfig, *, streamed: bool) -> None:
        self.prompt = prompt
        self.config = config
        self.streamed = streamed
        self.sequences: list[Request] = []
        self.arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def deliver(self, what: Delivery) -> None:
        with suppress(RuntimeError):  # a loop that has been closed has nobody left who waits
            self._loop.call_soon_threadsafe(self.arrived.put_nowait, what)


class AsyncArgsDecoder:
    """Decodes for many asyncio tasks together.

        async with AsyncArgsDecoder(decoder) as engine:
            async for token in engine.stream(prompt, config): ...
            results = await engine.generate(prompts, config)

    While it is open the engine is its own: use neither ``decoder`` nor its models. Beginnings that
    requests have in common are kept from one request to the next.

    Args:
        decoder: the models.
        max_waiting: requests that may wait while ``decoder.max_batch_size`` others decode. Further
            calls wait for their turn before anything is queued for them.
    """

    def __init__(self, decoder: ArgsDecoder, *, max_waiting: int = 256) -> None:
        if max_waiting < 0:
            raise ConfigError(f"max_waiting is {max_waiting}; it must be at least 0")
        if decoder._scheduler.keep_prefixes:
            raise ConfigError("another AsyncArgsDecoder has this decoder; close that one first")
        self._decoder = decoder
        self._scheduler = decoder._scheduler
        self._places = asyncio.Semaphore(decoder.max_batch_size + max_waiting)
        self._under_way: list[_Request] = []
        # What the thread is to do between two bursts, and the bell that wakes it.
        self._orders: deque[Callable[[], None]] = deque()
        self._bell = threading.Condition()
        self._closed = False  # the thread takes no more requests
        self._ended = False  # nor any other order
        self._scheduler.keep_prefixes = True
        # The thread sees the context of its maker: a forced backend, say.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._work,), name="args-fast", daemon=True
        )
        self._thread.start()

    async def stream(
        self, prompt: Prompt, config: DecodingConfig | None = None
    ) -> AsyncIterator[Token]:
        """As ``ArgsDecoder.stream``. Closing the iterator, or cancelling the task, frees the pages
        before the next burst."""
        async with self._places:
            request = self._ask(prompt, config, streamed=True)
            try:
                while True:
                    what = await request.arrived.get()
                    if isinstance(what, BaseException):
                        raise what
                    for token in what:
                        assert isinstance(token, Token)
                        yield token
                        if token.finish_reason is not None:
                            return
            finally:
                self._order(lambda: self._drop(request))

    async def generate(
        self,
        prompts: Prompt | Many[Prompt],
        config: DecodingConfig | Many[DecodingConfig] | None = None,
    ) -> list[Generation]:
        """As ``ArgsDecoder.generate``. The first error, or cancelling the task, calls off all of
        the prompts."""
        each = self._decoder._encoder.split(prompts)
        configs = self._decoder._configs(config, len(each))
        requests = zip(each, configs, strict=True)
        tasks = [asyncio.ensure_future(self._one(*request)) for request in requests]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [generation for result in results for generation in result]

    async def close(self) -> None:
        """Call off what is under way, and end the thread. Requests that wait get a
        DecoderClosedError."""
        self._order(self._stop)
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> "AsyncArgsDecoder":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- in the tasks --------------------------------------------------------------------------

    async def _one(self, prompt: Prompt, config: DecodingConfig) -> list[Generation]:
        async with self._places:
            request = self._ask(prompt, config, streamed=False)
            try:
                what = await request.arrived.get()
            finally:
                self._order(lambda: self._drop(request))
        if isinstance(what, BaseException):
            raise what
        return [each for each in what if isinstance(each, Generation)]

    def _ask(self, prompt: Prompt, config: DecodingConfig | None, *, streamed: bool) -> _Request:
        request = _Request(prompt, config or DecodingConfig(), streamed=streamed)
        if not self._order(lambda: self._begin(request)):
            raise DecoderClosedError(CLOSED)
        return request

    def _order(self, what: Callable[[], None]) -> bool:
        """Have the thread do something before its next burst; False where it has ended."""
        with self._bell:
            if not self._ended:
                self._orders.append(what)
                self._bell.notify()
            return not self._ended

    # ---- in the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._serve()
        finally:  # whatever ends the thread, nobody waits for it in vain
            with self._bell:
                self._ended = True
                self._orders.clear()
            for request in self._under_way:
                request.deliver(DecoderClosedError(CLOSED))

    def _serve(self) -> None:
        while True:
            with self._bell:
                while not (self._orders or self._scheduler.busy or self._closed):
                    self._bell.wait()
                orders = list(self._orders)
                self._orders.clear()
                if self._closed and not orders:
                    self._ended = True
                    return
            for order in orders:
                order()
            if not self._scheduler.busy:
                continue
            with suppress(Exception):  # every sequence has it as its error
                self._scheduler.step()
            for request in list(self._under_way):
                self._report(request)

    def _begin(self, request: _Request) -> None:
        if self._closed:
            request.deliver(DecoderClosedError(CLOSED))
            return
        try:
            if request.streamed:
                request.sequences = [self._decoder._only(request.prompt, request.config)]
            else:
                request.sequences = self._decoder._sequences(request.prompt, request.config)
        except Exception as error:  # it is the task's, whatever it is
            request.deliver(error)
            return
        for sequence in request.sequences:
            self._scheduler.submit(sequence)
        self._under_way.append(request)

    def _report(self, request: _Request) -> None:
        """Send a task what there is to send."""
        error = next((s.error for s in request.sequences if s.error is not None), None)
        if request.streamed and (new := request.sequences[0].take()):
            request.deliver(new)
        if error is not None:
            request.deliver(error)
        elif not all(s.over for s in request.sequences):
            return
        elif not request.streamed:
            request.deliver([s.generation() for s in request.sequences])
        self._drop(request)

    def _drop(self, request: _Request) -> None:
        if request in self._under_way:
            self._under_way.remove(request)
            self._decoder._cancel(request.sequences)

    def _stop(self) -> None:
        self._closed = True
        for request in list(self._under_way):
            self._drop(request)
            request.deliver(DecoderClosedError(CLOSED))
        self._scheduler.keep_prefixes = False
        self._scheduler.pool.evict_all()
