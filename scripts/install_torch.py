"""Install torch if there is none: the CPU build where there is no NVIDIA GPU, else the CUDA build.

A torch that is already there, of whatever build, is left alone. Arguments are handed to pip (an
index of your own, for example).
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys

VERSION = "2.13.0"


def main(pip_options: list[str]) -> int:
    if importlib.util.find_spec("torch") is not None:
        print("torch is installed: left as it is")
        return 0
    if shutil.which("nvidia-smi"):
        print(f"installing torch {VERSION} with CUDA (nvidia-smi was found)")
        return _pip(pip_options, f"torch=={VERSION}")
    print(f"installing torch {VERSION} for the CPU (no nvidia-smi)")
    if _pip(pip_options, f"torch=={VERSION}+cpu", quiet=True) == 0:
        return 0
    # Not every index names the CPU build apart; on macOS the plain one is it.
    print(f"the index has no torch {VERSION}+cpu: taking its torch {VERSION}, whatever the build")
    return _pip(pip_options, f"torch=={VERSION}")


def _pip(options: list[str], requirement: str, *, quiet: bool = False) -> int:
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, requirement]
    return subprocess.run(command, stderr=subprocess.DEVNULL if quiet else None).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    sys.exit(main(parser.parse_known_args()[1]))  # what it does not know is for pip
