"""A reward that is a Python function of prompt and response."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from args_fast.errors import ConfigError, RewardError
from args_fast.rewards.host import Exchange, HostReward


class Function(HostReward):
    """``callable(prompts: list[str], responses: list[str]) -> list[float]``, sync or async.

    The function has to be pure: the same texts, the same rewards. Distinct texts of a step are
    asked for once. A wrong number of values, NaN, an exception or a timeout after the retries is a
    RewardError of the requests concerned. Decoding waits for the function at every step: while it
    runs, no request of the engine advances.

    Coroutines all run on one event loop, in a thread of this object's own, so an async client may
    live as long as the object.

    Args:
        function: called with two lists of one length; one that declares a parameter ``messages``
            gets the conversations too, a list with None where a prompt was not a conversation.
        name: by which requests name it; the function's own by default.
        batch_size: texts per call at most; None for all of a step at once.
        timeout: seconds that a call may take; None for any time. A coroutine that takes longer is
            cancelled; another function cannot be, and is left to end in its thread.
        retries: how many more times a call that failed or timed out is tried.

    Raises:
        ConfigError: an argument is outside its range.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        batch_size: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        if not callable(function):
            raise ConfigError(
                f"the reward function is a {type(function).__name__}; it must be callable with "
                "(prompts, responses)"
            )
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1, or None")
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"timeout is {timeout}; it must be above 0 seconds, or None")
        if retries < 0:
            raise ConfigError(f"retries is {retries}; it must be at least 0")
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self._function = function
        self._batch_size = batch_size
        self._timeout = timeout
        self._retries = retries
        self._wants_messages = _declares(function, "messages")
        self._loop: asyncio.AbstractEventLoop | None = None

    def values(self, texts: Sequence[Exchange]) -> list[float]:
        size = self._batch_size or max(1, len(texts))
        pieces = [texts[i : i + size] for i in range(0, len(texts), size)]
        return [value for piece in pieces for value in self._tried(piece)]

    def _tried(self, texts: Sequence[Exchange]) -> list[float]:
        for _ in range(self._retries):
            try:
                return self._call(texts)
            except Exception:
                continue
        return self._call(texts)

    def _call(self, texts: Sequence[Exchange]) -> list[float]:
        arguments: dict[str, Any] = {}
        if self._wants_messages:
            arguments["messages"] = [text.as_messages() for text in texts]
        prompts = [text.prompt for text in texts]
        responses = [text.response for text in texts]

        def call() -> Any:
            return self._function(prompts, responses, **arguments)

        if self._timeout is None or _is_async(self._function):
            result = call()  # a coroutine is made at once and run below
        else:
            result = self._within(_in_thread(call))
        if inspect.isawaitable(result):
            result = self._within(self._in_loop(result))
        return self.numbers(list(result), texts)

    def _within(self, future: Future) -> Any:
        try:
            return future.result(self._timeout)
        except FutureTimeoutError as error:
            if future.done():  # the function's own TimeoutError
                raise
            future.cancel()
            raise RewardError(
                f"the reward {self.name!r} took longer than its timeout of {self._timeout} s"
            ) from error

    def _in_loop(self, awaitable: Awaitable) -> Future:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="reward").start()

        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop)


def _in_thread(call: Callable[[], Any]) -> Future:
    """Run a call in a daemon thread: one that hangs does not keep the process from ending."""
    future: Future = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()  # from now on it cannot be cancelled
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="reward").start()
    return future


def _is_async(function: Callable[..., Any]) -> bool:
    by_call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(by_call)


def _declares(function: Callable[..., Any], parameter: str) -> bool:
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False
