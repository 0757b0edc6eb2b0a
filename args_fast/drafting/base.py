"""What the engine knows of a drafter: the protocol that every kind enters by.

``Drafts`` are made once and live with the engine; a ``Drafter`` guesses for one request. A guess
that is wrong costs time and changes no token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from args_fast.config import DecodingConfig
from args_fast.drafting.worth import MAX_DRAFT


class Drafter(Protocol):
    """Guesses the next tokens of one request."""

    def propose(self, ids: Sequence[int], at_most: int) -> list[int]:
        """The tokens that may come next, none to ``at_most`` of them. ``ids``: prompt and output so
        far; they only ever grow."""


class Drafts(ABC):
    """One kind of drafter, for all requests of an engine.

    Attributes:
        name: as ``EngineOptions.draft`` has it, for messages.
        at_least: tokens of a draft that are verified whatever they are worth; 0 leaves that to the
            rule of worth (``args_fast.drafting.worth``).
        at_most: tokens of a draft.
        cost: of a drafted token, in passes of the language model over one row.
    """

    name: str = "drafts"
    at_least: int = 1
    at_most: int = MAX_DRAFT
    cost: float = 0.0

    @abstractmethod
    def open(self, prompt: Sequence[int], config: DecodingConfig) -> Drafter:
        """A drafter for a request with this prompt, which is decoded in this way."""

    def learn(self, prompt: Sequence[int], response: Sequence[int]) -> None:  # noqa: B027
        """A request has finished with this response."""
