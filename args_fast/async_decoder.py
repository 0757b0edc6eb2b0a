"""The decoder for many users at once: one engine in a thread, any number of tasks that wait."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from args_fast.async_calls import Call, Delivery, Mail
from args_fast.config import DecodingConfig
from args_fast.decoder import ArgsDecoder
from args_fast.errors import ConfigError, DecoderClosedError
from args_fast.generation import Generation, Token
from args_fast.prompts import Prompt

CLOSED = "the decoder has been closed; open another AsyncArgsDecoder"


class AsyncArgsDecoder:
    """Decodes for many asyncio tasks together.

        async with AsyncArgsDecoder(decoder) as engine:
            async for token in engine.stream(prompt, config): ...
            results = await engine.generate(prompts, config)

    While it is open the decoder is its own: what ``decoder`` itself is asked for is a
    DecoderBusyError. Beginnings that requests have in common are kept from one request to the next.

    A stream that is not read is decoded ``max_unread`` tokens ahead and then paused: it gives its
    pages and its turn to others, and resumes from its ids when it is read again, with the same
    tokens. So a stream that was left in the middle and kept in a variable costs nothing.

    Args:
        decoder: the models.
        max_waiting: requests that may wait while ``decoder.max_batch_size`` others decode. Further
            calls wait for their turn before anything is queued for them.
        max_unread: tokens of a stream that are decoded before they are read.
    """

    def __init__(
        self, decoder: ArgsDecoder, *, max_waiting: int = 256, max_unread: int = 64
    ) -> None:
        if max_waiting < 0:
            raise ConfigError(f"max_waiting is {max_waiting}; it must be at least 0")
        if max_unread < 1:
            raise ConfigError(f"max_unread is {max_unread}; it must be at least 1")
        self._max_unread = max_unread
        self._decoder = decoder
        self._engine = decoder.engine
        self._slots = asyncio.Semaphore(decoder.max_batch_size + max_waiting)
        self._calls: list[Call] = []
        # What the thread is to do between two bursts, and the bell that wakes it.
        self._orders: deque[Callable[[], None]] = deque()
        self._bell = threading.Condition()
        self._mail = Mail()
        self._closed = False  # the thread takes no more calls
        self._ended = False  # nor any other order
        # The thread sees the context of its maker: a forced backend, say.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._work,), name="args-fast", daemon=True
        )
        ownership = self._engine.ownership
        with ownership.lock:
            if ownership.owner is not None:
                raise ConfigError("another AsyncArgsDecoder has this decoder; close that one first")
            ownership.owner = self._thread
            self._engine.hold_prefixes = True
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes calls: False once it is closed, or its thread has ended."""
        return self._thread.is_alive() and not self._closed

    @property
    def running(self) -> int:
        """Requests that are decoded now."""
        return len(self._engine.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for pages."""
        return self._engine.waiting

    async def stream(
        self, prompt: Prompt, config: DecodingConfig | None = None
    ) -> AsyncIterator[Token]:
        """As ``ArgsDecoder.stream``. Closing the iterator, or cancelling the task, frees the pages
        before the next burst."""
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        async with self._ask(prompt, config, arrived.put_nowait, streamed=True) as call:
            while True:
                for token in _tokens(await arrived.get()):
                    yield token
                    call.taken += 1
                    if token.finish_reason is not None:
                        return
                if call.paused:
                    self._order(lambda: self._resume(call))

    async def decode(
        self, prompt: Prompt, config: DecodingConfig, receive: Callable[[list[Token]], None]
    ) -> None:
        """As ``stream``, for many streams at little cost: ``receive`` is called in the event loop
        with the tokens of each step, and this returns after the last. Nothing is paused for it.
        Cancelling the task frees the pages before the next burst."""
        ended = asyncio.get_running_loop().create_future()

        def take(delivery: Delivery) -> None:
            if ended.done():
                return
            try:
                tokens = _tokens(delivery)
                call.taken += len(tokens)
                receive(tokens)
            except BaseException as error:  # it is the task's, whatever it is
                ended.set_exception(error)
                return
            if tokens[-1].finish_reason is not None:
                ended.set_result(None)
            elif call.paused:
                self._order(lambda: self._resume(call))

        async with self._ask(prompt, config, take, streamed=True) as call:
            await ended

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: DecodingConfig | Sequence[DecodingConfig] | None = None,
    ) -> list[Generation]:
        """As ``ArgsDecoder.generate``. The first error, or cancelling the task, cancels all of the
        prompts."""
        split = self._decoder.split(prompts)
        configs = self._decoder.configs(config, len(split))
        calls = zip(split, configs, strict=True)
        tasks = [asyncio.ensure_future(self._generate_one(*call)) for call in calls]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [generation for result in results for generation in result]

    async def score(self, prompts: Prompt | Sequence[Prompt]) -> list[list[float]]:
        """As ``ArgsDecoder.score``."""
        return await self._between_bursts(lambda: self._decoder.score(prompts))

    async def token_rewards(self, prompt: Prompt, continuation: Sequence[int]) -> list[float]:
        """As ``ArgsDecoder.token_rewards``."""
        return await self._between_bursts(lambda: self._decoder.token_rewards(prompt, continuation))

    async def close(self) -> None:
        """Cancel what is under way, and end the thread. Waiting calls get a DecoderClosedError."""
        self._order(self._stop)
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> "AsyncArgsDecoder":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- in the tasks --------------------------------------------------------------------------

    async def _generate_one(self, prompt: Prompt, config: DecodingConfig) -> list[Generation]:
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        async with self._ask(prompt, config, arrived.put_nowait, streamed=False):
            delivery = await arrived.get()
        if isinstance(delivery, BaseException):
            raise delivery
        return [result for result in delivery if isinstance(result, Generation)]

    async def _between_bursts(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns or raises, done by the thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        def order() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = work(), None
            except Exception as error:  # it is the task's, whatever it is
                outcome = None, error
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, *outcome)

        if not self._order(order):
            raise DecoderClosedError(CLOSED)
        return await future

    @asynccontextmanager
    async def _ask(
        self,
        prompt: Prompt,
        config: DecodingConfig | None,
        receive: Callable[[Delivery], None],
        *,
        streamed: bool,
    ) -> AsyncGenerator[Call, None]:
        await self._slots.acquire()
        call = Call(prompt, config or DecodingConfig(), self._slots, receive, streamed=streamed)
        try:
            if not self._order(lambda: self._begin(call)):
                raise DecoderClosedError(CLOSED)
            yield call
        finally:
            call.free_slot()
            self._order(lambda: self._drop(call))

    def _order(self, work: Callable[[], None]) -> bool:
        """Have the thread do something before its next burst; False where it has ended."""
        with self._bell:
            if not self._ended:
                self._orders.append(work)
                self._bell.notify()
            return not self._ended

    # ---- in the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._serve()
        finally:  # whatever ends the thread, no task waits in vain
            with self._bell:
                self._ended = True
                self._orders.clear()
            for call in self._calls:
                self._mail.deliver(call, DecoderClosedError(CLOSED))
            self._mail.send()
            self._engine.hold_prefixes = False
            self._engine.ownership.owner = None

    def _serve(self) -> None:
        while True:
            with self._bell:
                while not (self._orders or self._engine.busy or self._closed):
                    self._bell.wait()
                orders = list(self._orders)
                self._orders.clear()
                if self._closed and not orders:
                    self._ended = True
                    return
            for order in orders:
                order()
            self._mail.send()
            if not self._engine.busy:
                continue
            with suppress(Exception):  # every request has it as its error
                self._engine.step()
            for call in list(self._calls):
                self._report(call)
            self._mail.send()

    def _begin(self, call: Call) -> None:
        if self._closed:
            self._mail.deliver(call, DecoderClosedError(CLOSED))
            return
        try:
            if call.streamed:
                call.requests = [self._decoder.single_request(call.prompt, call.config)]
            else:
                call.requests = self._decoder.requests(call.prompt, call.config)
            for request in call.requests:
                self._engine.submit(request)
        except Exception as error:  # it is the task's, whatever it is
            self._mail.deliver(call, error)
            return
        self._calls.append(call)

    def _report(self, call: Call) -> None:
        """Send a task what there is to send."""
        error = next((r.error for r in call.requests if r.error is not None), None)
        if call.streamed and (new := call.requests[0].take()):
            call.delivered += len(new)
            self._mail.deliver(call, new)
        if error is not None:
            self._mail.deliver(call, error)
        elif not all(r.finished for r in call.requests):
            if call.streamed and call.unread > self._max_unread and not call.paused:
                self._pause(call)
            return
        elif not call.streamed:
            self._mail.deliver(call, [r.generation() for r in call.requests])
        self._mail.free_slot(call)
        self._drop(call)

    def _pause(self, call: Call) -> None:
        """Nothing reads this stream: its pages and its turn are for others."""
        self._engine.pause(call.requests[0])
        call.paused = True
        self._mail.free_slot(call)
        if call.unread <= self._max_unread:  # the task caught up before it could see the pause
            self._resume(call)

    def _resume(self, call: Call) -> None:
        if call in self._calls and call.paused:
            call.paused = False
            self._engine.submit(call.requests[0])

    def _drop(self, call: Call) -> None:
        if call in self._calls:
            self._calls.remove(call)
            for request in call.requests:
                self._engine.cancel(request)

    def _stop(self) -> None:
        self._closed = True
        for call in list(self._calls):
            self._drop(call)
            self._mail.deliver(call, DecoderClosedError(CLOSED))
        self._engine.scheduler.evict_all()


def _tokens(delivery: Delivery) -> list[Token]:
    """The tokens that came for a stream. Raises the error that came in their place."""
    if isinstance(delivery, BaseException):
        raise delivery
    return cast(list[Token], delivery)
