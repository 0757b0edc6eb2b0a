"""A chat model at an OpenAI-compatible endpoint, asked politely: paced, retried, counted."""

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from args_fast.errors import EvaluationError

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may pass
REFUSED = {400, 413, 422}  # of this request alone
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for


@dataclass(frozen=True)
class Reply:
    """What the model said and what it cost.

    Attributes:
        text: the message's content.
        prompt_tokens, completion_tokens: as the server counts them; 0 where it does not.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


class EndpointError(EvaluationError):
    """An endpoint that cannot be used: no such model, no permission, not a URL."""


class UnansweredError(EvaluationError):
    """A request that the endpoint refused, or did not answer within its tries."""


class Endpoint:
    """Where a chat model is served.

    Args:
        url: the base, such as "https://host/v1".
        model: the name that the server knows it by.
        key_variable: the environment variable that holds the key; its absence means no key.
        per_minute: requests at most; None for no limit.
        tries: of one request, the first included.
        timeout: seconds that one try may take.
        sleep: waits; replaced in tests.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        per_minute: float | None = None,
        tries: int = 5,
        timeout: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise EndpointError(
                f"the endpoint is {url!r}; it must be a URL such as https://host/v1"
            )
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self._key = os.environ.get(key_variable)
        self._key_variable = key_variable
        self._tries = tries
        self._timeout = timeout
        self._sleep = sleep
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def ask(self, messages: list[dict[str, str]], *, seed: int, max_tokens: int) -> Reply:
        """The model's reply to a conversation, at temperature 0. Safe from several threads.

        Raises:
            UnansweredError: this request is refused, or every try failed.
            EndpointError: the endpoint would refuse any other request too.
        """
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        reason = ""
        for attempt in range(self._tries):
            self._pace()
            try:
                return _reply(self._post(body))
            except _Passing as error:
                reason = str(error)
                if attempt + 1 < self._tries:
                    # Twice as long each time, with a random part so that threads drift apart.
                    wait = max(error.after, 2**attempt * (0.5 + random.random() / 2))
                    self._sleep(min(LONGEST_WAIT, wait))
        raise UnansweredError(
            f"{self.url} gave no usable reply in {self._tries} tries; the last one: {reason}"
        )

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), headers=headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            said = error.read(400).decode(errors="replace")
            if error.code in RETRIED:
                after = error.headers.get("Retry-After") or ""
                raise _Passing(f"HTTP {error.code}: {said}", _seconds(after)) from error
            hint = "" if self._key or error.code != 401 else f"; set {self._key_variable}"
            kind = UnansweredError if error.code in REFUSED else EndpointError
            raise kind(f"{self.url} answered HTTP {error.code}: {said}{hint}") from error
        except (OSError, ValueError) as error:  # no connection, a timeout, or no JSON
            raise _Passing(str(error) or type(error).__name__) from error

    def _pace(self) -> None:
        """Wait for this request's turn, so that no minute holds more than it may."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._sleep(turn - now)


class _Passing(Exception):
    """A failure that another try may not meet; ``after`` is how long the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def _seconds(written: str) -> float:
    try:
        return max(0.0, float(written))
    except ValueError:
        return 0.0  # a date: our own pace is slow enough


def _reply(answer: Any) -> Reply:
    try:
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _Passing(f"the reply is not a chat completion ({type(error).__name__})") from error
    if not isinstance(text, str) or not text.strip():
        raise _Passing("the reply has no text")
    return Reply(text, *counts)
