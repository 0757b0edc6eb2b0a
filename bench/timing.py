"""How everything here is timed, and the facts that stand next to every figure."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import torch

from args_fast.eval import provenance
from args_fast.machine import processor, versions

PACKAGES = ("torch", "triton", "transformers", "flash-attn", "torchao", "args-fast")
FLUSHED = 256 * 2**20  # bytes written between two timed calls on CUDA: more than any L2 holds
WARM_UP = 3  # calls before the first that counts
READ = {"cpu": 2**30, "cuda": 2**32}  # bytes of the array whose reading is timed
# How the variables of the environment begin that change what runs.
SWITCHES: tuple[str, ...] = ("ARGS_FAST_", "CUBLAS_", "CUDA_DEVICE_MAX", "CUDA_LAUNCH", "OMP_")
SWITCHES += ("NVIDIA_TF32", "PYTORCH_", "TORCH", "TRITON_")
T = TypeVar("T")
Sample = dict[str, float]  # seconds: the median of ``repeats`` times, quartiles and minimum


def summary(values: Sequence[float]) -> Sample:
    """The sample that measurements make; quartiles of one are itself."""
    low = median = high = values[0]
    if len(values) > 1:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    found = {"median": median, "low": low, "high": high, "minimum": min(values)}
    return found | {"repeats": len(values)}


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Wall-clock seconds of one call, with all that it starts on the device, and its result."""
    synchronise(device)
    began = time.perf_counter()
    result = call()
    synchronise(device)
    return time.perf_counter() - began, result


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    call: Callable[[], object],
    device: torch.device,
    *,
    repeats: int = 20,
    limit: float = 2.0,
    drained: bool = False,
    per: int = 1,
) -> Sample:
    """Time a short call many times; the sample is in seconds.

    On CUDA the device's clock counts, and the L2 cache is emptied before every call: by reading
    what was written, as a write alone may leave what the cache held.

    Args:
        call: What is timed. It need not synchronise.
        device: Where the call runs.
        repeats: Calls that count; at least 3 are made.
        limit: Seconds of timed calls after which no further call is made.
        drained: Let a CUDA device come to rest before every call, so that the host's work for the
            call counts too; otherwise it may be done while the cache is emptied.
        per: What one call does so many times; the sample is of one of them.
    """
    for _ in range(WARM_UP):
        call()
    once = _by_events(call, device, drained) if device.type == "cuda" else None
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < limit):
        times.append(once() if once else timed(call, device)[0])
    return summary([time / per for time in times])


def _by_events(
    call: Callable[[], object], device: torch.device, drained: bool
) -> Callable[[], float]:
    flushed = torch.empty(FLUSHED // 4, dtype=torch.float32, device=device)

    def once() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        flushed.sum()
        if drained:
            torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    return once


def read_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes per second of the fastest of 20 reads of an array (its sum) that no cache holds: what
    a step that only reads its weights could reach on this device."""
    array = torch.zeros((size or READ[device.type]) // 4, device=device)
    return array.nbytes / measure(array.sum, device, limit=5.0)["minimum"]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of the fastest of 20 copies of such an array."""
    array = torch.zeros(READ[device.type] // 4, device=device)
    copied = torch.empty_like(array)
    return 2 * array.nbytes / measure(lambda: copied.copy_(array), device, limit=5.0)["minimum"]


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure needs next to it: the device, the versions, the switches that change what runs
    as far as they are set, the commit ("+" after it where files differ), the time."""
    revision, _, changed = (provenance.commit() or "unknown").partition("-")
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "cuda": torch.version.cuda,
        "switches": {k: v for k, v in sorted(os.environ.items()) if k.startswith(SWITCHES)},
        "commit": revision[:10] + "+" * bool(changed),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def describe(facts: dict[str, Any]) -> str:
    """The environment in one line, for a table's heading."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    cuda = f", CUDA {facts['cuda']}" if facts["cuda"] else ""
    return (
        f"{facts['device']}, {facts['threads']} threads; {versions}{cuda}; "
        f"commit {facts['commit']}; {facts['date']}"
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def slug(name: str) -> str:
    """A device's name as that of a folder."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
