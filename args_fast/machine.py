"""What this machine is called and has installed, for reports that name the device of every number,
and its memory."""

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

SMALL_MODEL = 20_000_000  # parameters of both models, up to which one thread is fastest


def processor() -> str:
    """The CPU's name as its maker gives it, where the system tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package; None for one that is not installed."""
    installed: dict[str, str | None] = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed


def available_memory() -> int:
    """Bytes of RAM available without swapping; all of it, where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the environment says
    otherwise: threads that spin on cores which other programs use slow all of them down, up to 150
    times. To be called before torch is imported, which reads the setting once."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def threads_for(parameters: int) -> int | None:
    """How many threads suit models of this many parameters; None leaves torch's choice, which is
    one per core, or what OMP_NUM_THREADS says. A small model's work is over before a second thread
    has woken."""
    if "OMP_NUM_THREADS" in os.environ or parameters > SMALL_MODEL:
        return None
    return 1
