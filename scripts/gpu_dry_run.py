"""The three visits of gpu_check.py without a GPU: each is killed once, then run to its end.

    python scripts/gpu_dry_run.py --log bench/results/gpu-dry-run

For each visit it starts the dry run and waits until a result is in the archive, then kills it as a
machine that is taken away does; checks that the archive is whole and every result in it can be
read; and runs the same command again, which continues to its end. The log says what came of it and
what the archives held. The exit status is 1 if anything was wrong. Run it with the Python whose
versions the GPU machine has. Most of its time is the first build, which is kept in --work.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("torch", "triton", "transformers")
VISITS = ("A", "B", "C")


def contents(archive: Path) -> dict[str, int]:
    """Names and sizes of what is in an archive; every JSON file in it is read."""
    if not archive.exists():
        return {}
    found = {}
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            file = opened.extractfile(member)
            text = file.read() if file else b""
            if member.name.endswith(".json"):
                json.loads(text)
            found[member.name] = member.size
    return found


def killed(command: list[str], archive: Path, seconds: float) -> str:
    """Start a visit and kill it once a result is in its archive. Says how that went."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < seconds:
        if any(name.endswith(".json") for name in contents(archive)):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return "killed when the first result was in the archive"
        time.sleep(0.5)
    if process.poll() is None:
        process.kill()
        process.wait()
        return "killed, without a result in the archive"
    return "ended before it could be killed"


def rehearse(visit: str, options: argparse.Namespace) -> tuple[list[str], bool]:
    """The log of one visit, and whether it was right."""
    out = options.work / "out" / visit
    archive = out / f"gpu-{visit}.tar.gz"
    archive.unlink(missing_ok=True)
    shutil.rmtree(options.work / "results", ignore_errors=True)  # of an earlier rehearsal
    for log in options.work.glob("*.log"):
        log.unlink()
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), visit, "--dry-run"]
    command += ["--work", str(options.work), "--out", str(out), "--seconds", str(options.seconds)]
    lines = [f"## {visit}", ""]
    how = killed(command, archive, options.seconds)
    left = contents(archive)
    lines += [f"First run: {how}. The archive that remained:", "", *_listed(left)]
    time.sleep(1)
    assert contents(archive) == left  # no process writes any more
    run = subprocess.run(command, capture_output=True, text=True)
    printed = (run.stdout + run.stderr).replace(str(options.work), "WORK").replace(str(ROOT), ".")
    lines += ["", f"Again, to its end (exit status {run.returncode}):", "", "```"]
    lines += [*printed.strip().splitlines(), "```", "", "The archive:", ""]
    lines += _listed(contents(archive))
    results = any(name.endswith(".json") for name in left)
    return [*lines, ""], run.returncode == 0 and results


def _listed(files: dict[str, int]) -> list[str]:
    return [f"- {name}, {size} bytes" for name, size in files.items()] or ["- nothing"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("visits", nargs="*", default=VISITS, metavar="VISIT", help="A, B, C (all)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-dry-run")
    parser.add_argument("--log", type=Path, help="folder for the logs (none)")
    parser.add_argument("--seconds", type=float, default=3600, help="for each run at most (3600)")
    options = parser.parse_args()
    options.work = options.work.resolve()
    wrong = []
    for visit in options.visits:
        lines, right = rehearse(visit, options)
        versions = ", ".join(f"{name} {_version(name)}" for name in VERSIONS)
        text = "\n".join([f"# Dry run on a CPU, {versions}", "", *lines])
        print(text, flush=True)
        if options.log:
            options.log.mkdir(parents=True, exist_ok=True)
            (options.log / f"{visit}.md").write_text(text)
        wrong += [] if right else [visit]
    print(f"wrong: {', '.join(wrong) or 'none'}")
    return bool(wrong)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
