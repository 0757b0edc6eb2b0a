"""Which implementation of each op runs: one table, one rule, one way to force it."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from args_fast.errors import BackendError
from args_fast.ops import plain
from args_fast.ops.schemas import FUSED, SCHEMAS

ENVIRONMENT = "ARGS_FAST_BACKEND"

# device type -> backends, the best first. On cuda "cuda" before "triton" is not measured yet: it
# follows from one launch against several, and a measurement is to replace it.
ORDER = {"cpu": ("cpp", "torch", "triton"), "cuda": ("cuda", "triton", "torch")}

# device type -> op -> backend -> implementation, in that order: the first is the automatic choice.
# A backend is listed only where it runs on this machine.
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
    unsupported: Callable[..., str | None] | None = None,
) -> None:
    """Enter an implementation into the table, at its backend's place in ORDER; last if it has none.
    ``unsupported`` has the op's arguments and says why it cannot take them, or None.

    A backend that has the parts of a fused op gets the composition of them, unless it offers a
    fused implementation of its own, before or after."""
    if unsupported is not None:
        LIMITS[backend, op] = unsupported
    offered = {**TABLE[device][op], backend: implementation}
    order = dict.fromkeys((*ORDER[device], *offered))
    TABLE[device][op] = {name: offered[name] for name in order if name in offered}
    for whole, parts in FUSED.items():
        has = [TABLE[device][part][backend] for part in parts if backend in TABLE[device][part]]
        if op in parts and len(has) == len(parts) and backend not in TABLE[device][whole]:
            offer(
                backend,
                device,
                whole,
                _select_then_commit(*has),
                unsupported=_of_the_parts(backend),
            )


def _select_then_commit(select: Callable, commit: Callable) -> Callable:
    """select_commit from its two parts."""

    def select_commit(*args: Any) -> tuple:
        *of_select, tail_k, tail_v, k_pages, v_pages, page_table, lengths = args
        chosen = select(*of_select)
        commit(tail_k, tail_v, chosen[0], k_pages, v_pages, page_table, lengths)
        return chosen

    return select_commit


def _of_the_parts(backend: str) -> Callable[..., str | None]:
    """Why select or commit cannot take the arguments of select_commit, or None."""

    def unsupported(*args: Any) -> str | None:
        *of_select, tail_k, tail_v, k_pages, v_pages, page_table, lengths = args
        of_commit = tail_k, tail_v, None, k_pages, v_pages, page_table, lengths
        return _why_not(backend, "select", of_select) or _why_not(backend, "commit", of_commit)

    return unsupported


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend ("torch", "cpp", "triton", "cuda") for every op in this context; None frees
    the choice. It wins over the environment variable ARGS_FAST_BACKEND."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """The backend that is forced here, by use_backend or by the environment; None for no one."""
    return _forced.get() or os.environ.get(ENVIRONMENT) or None


def implementation(op: str, device: str, arguments: tuple | None = None) -> Callable:
    """What runs ``op`` on a device type, with these arguments if they are given: the best backend
    that can take them. Raises BackendError where a forced one does not have it, or cannot."""
    available = TABLE[device][op]
    forced = forced_backend()
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


def _why_not(backend: str, op: str, arguments: Iterable) -> str | None:
    limit = LIMITS.get((backend, op))
    return limit(*arguments) if limit else None
