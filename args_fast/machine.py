"""What this machine is called, for reports that name the device of every number, and its memory."""

import os
import platform


def processor() -> str:
    """The CPU's name as its maker gives it, where the system tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_memory() -> int:
    """Bytes of RAM to be had without swapping; all there is, where the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
