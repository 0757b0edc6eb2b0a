"""Requests through a decoder: as completed, or in order, with bounded memory in both cases."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from args_fast.errors import ArgsError
from args_fast.generation import Generation
from args_fast.jobs.lines import Entry, Request
from args_fast.jobs.records import Origin, Outcome

if TYPE_CHECKING:
    from args_fast.config import DecodingConfig

# Lines that may be under way, or wait for one before them. Where one line is so slow that this many
# come after it, nothing new begins until it is done.
WINDOW = 1024


class Decoder(Protocol):
    """What a job needs of ArgsDecoder."""

    def complete(
        self, requests: Iterable[tuple[Any, "DecodingConfig"]]
    ) -> Iterator[tuple[int, Generation | ArgsError]]: ...


@dataclass
class _Begun:
    """A request that the decoder has taken, and the samples of it that are there."""

    place: int
    origin: Origin
    count: int
    samples: list[Generation] = field(default_factory=list)

    def outcome(self, result: Generation | ArgsError) -> Outcome | None:
        """The outcome once this result is there; None while samples are missing."""
        if isinstance(result, ArgsError):
            return self.origin, result
        self.samples.append(result)
        return (self.origin, self.samples) if len(self.samples) == self.count else None


def as_completed(
    decoder: Decoder, entries: Iterator[Entry], window: int | None = None
) -> Iterator[tuple[int, Outcome]]:
    """(place among the entries, outcome), each as soon as it is there.

    Args:
        decoder: decodes them.
        entries: requests and errors.
        window: if given, no entry is begun while one that is this many places before it has no
            outcome yet: what a reorder buffer after this can come to hold.
    """
    places = enumerate(entries)
    taken = 0
    exhausted = False
    under_way: dict[int, _Begun] = {}  # by request of this round, the oldest first
    refused: deque[tuple[int, Outcome]] = deque()

    def is_full() -> bool:
        if window is None or not under_way:
            return False
        return taken - next(iter(under_way.values())).place >= window

    # A decoder pulls when it has room, and cannot be told "not now", only "no more". So where the
    # window is full the round ends: what is under way is finished, and another round begins.
    def pull() -> Iterator[Request]:
        nonlocal taken, exhausted
        begun = 0
        while len(refused) < (window or WINDOW) and not is_full():
            entry = next(places, None)
            if entry is None:
                exhausted = True
                return
            place, (origin, request) = entry
            taken = place + 1
            if isinstance(request, ArgsError):
                refused.append((place, (origin, request)))
                continue
            under_way[begun] = _Begun(place, origin, request[1].num_return_sequences)
            begun += 1
            yield request

    while not exhausted:
        for index, result in decoder.complete(pull()):
            outcome = under_way[index].outcome(result)
            if outcome is None:
                continue
            yield under_way.pop(index).place, outcome
            while refused:
                yield refused.popleft()
        while refused:
            yield refused.popleft()


def in_order(completed: Iterable[tuple[int, Outcome]]) -> Iterator[Outcome]:
    """Outcomes in the order of their places, each as soon as those before it are there."""
    waiting: dict[int, Outcome] = {}
    turn = 0
    for place, outcome in completed:
        waiting[place] = outcome
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1
