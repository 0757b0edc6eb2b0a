"""A reward that is a Python function of prompt and response."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from args_fast.errors import ConfigError, RewardError
from args_fast.rewards.host import HostReward, Text


class Function(HostReward):
    """``callable(prompts: list[str], responses: list[str]) -> list[float]``, sync or async.

    The function has to be pure: the same texts, the same rewards. Distinct texts of a step are
    asked for once. A wrong number of values, NaN, an exception or a timeout after the retries is a
    RewardError of the requests concerned. Decoding waits for the function at every step.

    Args:
        function: called with two lists of one length; one that declares a parameter ``messages``
            gets the conversations too, a list with None where a prompt was not a conversation.
        name: by which requests name it; the function's own by default.
        batch_size: texts per call at most; None for all of a step at once.
        timeout: seconds that a call may take; None for any time. A call that takes longer is left
            to end in its thread.
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
        self._workers: ThreadPoolExecutor | None = None

    def values(self, texts: Sequence[Text]) -> list[float]:
        size = self._batch_size or max(1, len(texts))
        pieces = [texts[i : i + size] for i in range(0, len(texts), size)]
        return [value for piece in pieces for value in self._tried(piece)]

    def _tried(self, texts: Sequence[Text]) -> list[float]:
        for attempt in range(self._retries + 1):
            try:
                values = [float(value) for value in self._call(texts)]
                if len(values) != len(texts):
                    raise RewardError(
                        f"the reward {self.name!r} gave {len(values)} values for {len(texts)} "
                        "texts; it must give one for each"
                    )
                return values
            except Exception:
                if attempt == self._retries:
                    raise
        raise AssertionError  # the loop returns or raises

    def _call(self, texts: Sequence[Text]) -> Sequence[float]:
        arguments: dict[str, Any] = {}
        if self._wants_messages:
            arguments["messages"] = [_as_messages(text) for text in texts]
        prompts = [text.prompt for text in texts]
        responses = [text.response for text in texts]
        if self._timeout is None and not inspect.iscoroutinefunction(self._function):
            return self._function(prompts, responses, **arguments)
        # In a thread of its own: an event loop may be running in this one.
        if self._workers is None:
            self._workers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="reward")
        future = self._workers.submit(self._run, prompts, responses, arguments)
        try:
            return future.result(self._timeout)
        except FutureTimeoutError:
            future.cancel()
            raise RewardError(
                f"the reward {self.name!r} took longer than its timeout of {self._timeout} s"
            ) from None

    def _run(
        self, prompts: list[str], responses: list[str], arguments: dict[str, Any]
    ) -> Sequence[float]:
        result = self._function(prompts, responses, **arguments)
        if inspect.isawaitable(result):

            async def wait() -> Any:
                return await result

            return asyncio.run(wait())
        return result


def _declares(function: Callable[..., Any], parameter: str) -> bool:
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def _as_messages(text: Text) -> list[dict[str, str]] | None:
    if text.messages is None:
        return None
    return [{"role": role, "content": content} for role, content in text.messages]
