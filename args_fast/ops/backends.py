"""Which implementation of each op runs: one table, one rule, one way to force it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from args_fast.errors import BackendError
from args_fast.ops import plain
from args_fast.ops.schemas import FUSED, SCHEMAS

ENVIRONMENT = "ARGS_FAST_BACKEND"

# device type -> backends, the best first. On cuda "cuda" before "triton" is not measured yet: it
# follows from one launch against several, and a measurement is to replace it.
ORDER = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}

# device type -> op -> backend -> implementation, in that order: the first is the automatic choice.
# A backend is listed only where it runs on this machine.
TABLE: dict[str, dict[str, dict[str, Callable]]] = {
    device: {op: {"torch": getattr(plain, op)} for op in SCHEMAS} for device in ("cpu", "cuda")
}

_forced: ContextVar[str | None] = ContextVar("args_fast_backend", default=None)


def offer(backend: str, device: str, op: str, implementation: Callable) -> None:
    """Enter an implementation into the table, at its backend's place in ORDER; last if it has none.

    A backend that has the parts of a fused op gets the composition of them, unless it offers a
    fused implementation of its own, before or after."""
    found = {**TABLE[device][op], backend: implementation}
    order = dict.fromkeys((*ORDER[device], *found))
    TABLE[device][op] = {name: found[name] for name in order if name in found}
    for whole, parts in FUSED.items():
        has = [TABLE[device][part][backend] for part in parts if backend in TABLE[device][part]]
        if op in parts and len(has) == len(parts) and backend not in TABLE[device][whole]:
            offer(backend, device, whole, _select_then_commit(*has))


def _select_then_commit(select: Callable, commit: Callable) -> Callable:
    """select_commit from its two parts."""

    def select_commit(*args: Any) -> tuple:
        *of_select, tail_k, tail_v, k_pages, v_pages, page_table, lengths = args
        chosen = select(*of_select)
        commit(tail_k, tail_v, chosen[0], k_pages, v_pages, page_table, lengths)
        return chosen

    return select_commit


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
