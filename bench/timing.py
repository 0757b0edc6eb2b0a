"""How everything here is timed, and the facts that stand beside every figure."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from args_fast.machine import processor

PACKAGES = ("torch", "triton", "transformers", "flash-attn", "args-fast")
FLUSHED = 256 * 2**20  # bytes written between two timed calls on CUDA: more than any L2 holds


@dataclass(frozen=True)
class Sample:
    """Seconds per call: median and quartiles of ``repeats`` calls, after ``warm_up`` others."""

    median: float
    low: float
    high: float
    minimum: float
    repeats: int
    warm_up: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    call: Callable[[], object],
    device: torch.device,
    *,
    warm_up: int = 3,
    repeats: int = 20,
    seconds: float = 2.0,
    cold: bool = True,
    drained: bool = False,
) -> Sample:
    """Time a call.

    On CUDA by events, each call by itself behind a write that empties the L2 cache (``cold``); on
    the CPU by the clock.

    Args:
        call: what is timed; it need not synchronise.
        device: where it runs.
        warm_up, repeats: calls before, and calls that count (at least 3 of them).
        seconds: no further call is timed once this much time has gone into them.
        cold: empty the L2 cache before every call on CUDA.
        drained: let the device come to rest before every call on CUDA, so that what the host does
            for the call counts too; else it may be done while the cache is emptied.
    """
    for _ in range(warm_up):
        call()
    if device.type == "cuda":
        times = _cuda(call, repeats, seconds, device, cold, drained)
    else:
        times = _cpu(call, repeats, seconds)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Sample(median, low, high, min(times), len(times), warm_up)


def _cpu(call: Callable[[], object], repeats: int, seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < seconds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def _cuda(
    call: Callable[[], object],
    repeats: int,
    seconds: float,
    device: torch.device,
    cold: bool,
    drained: bool,
) -> list[float]:
    flushed = torch.empty(FLUSHED if cold else 1, dtype=torch.int8, device=device)
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < seconds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        if drained:
            torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return times


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes per second, read and written together, of the best copy of ``size`` bytes that torch
    makes here: what a kernel that only moves bytes can hope for."""
    size = size or (2**30 if device.type == "cuda" else 2**28)
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    sample = measure(lambda: target.copy_(source), device, repeats=20)
    return 2 * size / sample.minimum


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure needs beside it: the device, the versions, the commit, the time."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def slug(name: str) -> str:
    """A device's name as that of a folder."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def commit() -> str:
    """The commit of the checkout, with "+" where it has been changed; "unknown" outside one."""
    here = Path(__file__).resolve().parent
    try:
        name = _git(here, "rev-parse", "--short=10", "HEAD")
        return name + "+" * bool(_git(here, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
