"""Build the source distribution and the wheel, install each in an environment of its own, and run
tests/claims with it: python scripts/check_dist.py [options of pip]

Nothing but the distribution and the tests is there: no checkout, no compiler's leftovers.
"""

import argparse
import os
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("claims", "helpers", "conftest.py")


def run(*command: object, cwd: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(word) for word in command], cwd=cwd, env=variables, check=True)


def check(archive: Path, folder: Path, pip_options: list[str]) -> None:
    # Without a pip of its own: that brings a setuptools which is too old to build the package.
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    # torch and the rest are those of this environment, which are large; its editable install of
    # the package is not seen that way.
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (own / "parent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = (python, "-m", "pip", "install", "--quiet", *pip_options)
    run(*pip, "--no-build-isolation", "--no-deps", "--force-reinstall", archive, cwd=folder)
    for name in TESTS:
        source = ROOT / "tests" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / "tests" / name)
    here = "import args_fast, sys; sys.exit(not args_fast.__file__.startswith(sys.prefix))"
    run(python, "-c", here, cwd=folder)  # the installed package, not the checkout
    options = ("-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", folder)
    helpers = f"pythonpath={folder / 'tests' / 'helpers'}"
    run(python, "-m", "pytest", *options, "-o", helpers, "tests", cwd=folder)


def main(pip_options: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch, "dist")
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for archive in sorted(built.iterdir()):
            print(f"{archive.name}: {archive.stat().st_size / 1e6:.1f} MB", flush=True)
            folder = Path(scratch, archive.suffix.strip("."))
            (folder / "tests").mkdir(parents=True)
            check(archive, folder, pip_options)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    sys.exit(main(parser.parse_known_args()[1]))  # what it does not know is for pip
