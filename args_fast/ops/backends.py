"""Which implementation of each op runs: one table, one rule, one way to force it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from args_fast.errors import BackendError
from args_fast.ops import plain
from args_fast.ops.schemas import SCHEMAS

ENVIRONMENT = "ARGS_FAST_BACKEND"

# device type -> op -> backend -> implementation, the best backend first: the first is the automatic
# choice. A backend is listed only where it runs on this machine.
TABLE: dict[str, dict[str, dict[str, Callable]]] = {
    device: {op: {"torch": getattr(plain, op)} for op in SCHEMAS} for device in ("cpu", "cuda")
}

_forced: ContextVar[str | None] = ContextVar("args_fast_backend", default=None)


def offer(backend: str, device: str, op: str, implementation: Callable, *, best: bool) -> None:
    """Enter an implementation into the table, before those already there if it is the best."""
    others = TABLE[device][op]
    TABLE[device][op] = (
        {backend: implementation, **others} if best else {**others, backend: implementation}
    )


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend ("torch", "cpp", "triton", "cuda") for every op in this context; None frees
    the choice. It wins over the environment variable ARGS_FAST_BACKEND."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def implementation(op: str, device: str) -> Callable:
    """What runs ``op`` on a device type. Raises BackendError where a forced backend does not have
    it."""
    available = TABLE[device][op]
    forced = _forced.get() or os.environ.get(ENVIRONMENT)
    if not forced:
        return next(iter(available.values()))
    if forced not in available:
        raise BackendError(
            f"backend {forced!r} has no {op} on {device} here, but {', '.join(available)} has. "
            f"Unset {ENVIRONMENT} for the automatic choice; `args-fast doctor` says what to do."
        )
    return available[forced]
