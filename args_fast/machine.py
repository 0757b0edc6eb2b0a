"""What this machine is called, for reports that name the device of every number."""

import platform


def processor() -> str:
    """The CPU's name as its maker gives it, where the system tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
