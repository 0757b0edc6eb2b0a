"""A bar for long work: prompts done, tokens per second, running mean reward."""

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from args_fast.engine.request import Request


class Progress:
    """Counts on standard error while sequences are decoded.

    Args:
        total: requests to come.
        shown: False shows nothing and counts all the same.
    """

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self.tokens = 0
        self._rewards = 0.0
        self._rewarded = 0
        self._began = time.perf_counter()
        self._bar = Bar(
            TextColumn("decoding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task("decoding", total=total, figures="")

    @property
    def mean_reward(self) -> float:
        """Of all tokens so far that have a reward; NaN before the first."""
        return self._rewards / self._rewarded if self._rewarded else math.nan

    @property
    def figures(self) -> str:
        speed = self.tokens / max(1e-9, time.perf_counter() - self._began)
        reward = f" · mean reward {self.mean_reward:+.2f}" if self._rewarded else ""
        return f"{speed:.0f} tokens/s{reward}"

    def update(self, group: list[Request], *, finished: bool) -> None:
        """Count the new tokens of a group of requests, and the group if it is finished."""
        for request in group:
            for token in request.take():
                self.tokens += 1
                if token.reward == token.reward:
                    self._rewards += token.reward
                    self._rewarded += 1
        self._bar.update(self._task, advance=int(finished), figures=self.figures)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
