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

# (backend, op) -> why it cannot take these arguments, or None. What is not here takes all that the
# plain one takes.
LIMITS: dict[tuple[str, str], Callable[..., str | None]] = {}

_forced: ContextVar[str | None] = ContextVar("args_fast_backend", default=None)


def offer(
    backend: str,
    device: str,
    op: str,
    implementation: Callable,
    *,
    best: bool,
    unsupported: Callable[..., str | None] | None = None,
) -> None:
    """Enter an implementation into the table, before those already there if it is the best.
    ``unsupported`` has the op's arguments and says why it cannot take them, or None."""
    if unsupported is not None:
        LIMITS[backend, op] = unsupported
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


def implementation(op: str, device: str, arguments: tuple | None = None) -> Callable:
    """What runs ``op`` on a device type, with these arguments if they are given: the best backend
    that can take them. Raises BackendError where a forced one does not have it, or cannot."""
    available = TABLE[device][op]
    forced = _forced.get() or os.environ.get(ENVIRONMENT)
    if not forced:
        return next(
            run
            for backend, run in available.items()
            if arguments is None or _why_not(backend, op, arguments) is None
        )
    if forced not in available:
        raise BackendError(
            f"backend {forced!r} has no {op} on {device} here, but {', '.join(available)} has. "
            f"Unset {ENVIRONMENT} for the automatic choice; `args-fast doctor` says what to do."
        )
    if arguments is not None and (reason := _why_not(forced, op, arguments)):
        raise BackendError(
            f"backend {forced!r} cannot run this {op}: {reason}. Unset {ENVIRONMENT}, and another "
            "backend is chosen."
        )
    return available[forced]


def _why_not(backend: str, op: str, arguments: tuple) -> str | None:
    limit = LIMITS.get((backend, op))
    return limit(*arguments) if limit else None
