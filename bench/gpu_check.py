"""Everything that only a machine with a GPU can show, by one command, within eight minutes.

    make gpu-check                        or: python bench/gpu_check.py
    python bench/gpu_check.py --dry-run   the same on this machine's CPU, at toy sizes

Stages: build (the package with its C++ and CUDA ops, into build/gpu-check: nothing is installed,
and the torch that is there is used as it is), test (golden decodes and op tests on the device),
sanitize (compute-sanitizer over every op), ops (every op against its peers). Each has a time of its
own and is ended when it is over; one that fails does not keep the others from running. The exit
status is 1 if anything was wrong. Results are in bench/results/<device>/, and in $OUT or --out.

The same command again continues ops after its last case. --stage NAME runs one stage alone.
"""

import argparse
import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds. Together they are the eight minutes; what a stage leaves over goes to the later ones.
BUDGET = {"build": 75, "test": 140, "sanitize": 110, "ops": 155}
# What needs no GPU is left to the machines without one.
TESTS = ("tests/ops/test_on_device.py", "tests/engine/test_engine_on_device.py")
CUDA_TESTS = ("tests/csrc/test_cuda_ops.py",)
OK, SKIPPED, RED = "ok", "skipped", "RED"


@dataclass
class Outcome:
    """What came of one part of a stage."""

    part: str
    status: str
    note: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.status:8} {self.part:15} {self.seconds:6.1f} s  {self.note}"


@dataclass
class Check:
    """One run: where it runs, where its files are, and when the stage under way must end."""

    device: str
    dry_run: bool
    python: str
    work: Path
    results: Path
    out: Path | None
    end: float = 0.0

    @property
    def library(self) -> Path:
        return self.work / "lib"

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def run(self, part: str, command: list[str], **environment: str) -> Outcome:
        """Run a command to its end or to the stage's; its output goes to a log and its last words
        into the outcome."""
        began = time.monotonic()
        log = self.work / (re.sub(r"[^a-z0-9]+", "-", part.lower()) + ".log")
        variables = {**os.environ, "TRITON_INTERPRET": "0"}
        if self.library.exists():  # else what is installed is checked
            variables["PYTHONPATH"] = str(self.library)
        if self.out is not None:
            variables["OUT"] = str(self.out)
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=self.library if self.library.exists() else self.work,
                env={**variables, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it starts can be ended with it
                preexec_fn=_die_with_parent,
            )
            note = ""
            try:
                code = process.wait(max(1.0, self.seconds_left))
            except subprocess.TimeoutExpired:
                code, note = 1, "its time was over; "
                os.killpg(process.pid, signal.SIGINT)  # pytest then says what has failed so far
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(8)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        text = log.read_text(errors="replace")
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / "gpu-check.log").open("a") as logs:  # one file for all that is run
                logs.write(f"==== {part}\n{text}\n")
        seconds = round(time.monotonic() - began, 1)
        return Outcome(part, OK if code == 0 else RED, note + last.strip()[:300], seconds)


def _die_with_parent() -> None:
    """A check that is killed leaves nothing running that the next one would be measured against."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# ---- stages --------------------------------------------------------------------------------------


def build(check: Check) -> list[Outcome]:
    """The package with its ops in one folder. Without pyproject.toml, so that any setuptools will
    do and no dependency is resolved."""
    stage = check.work / "stage"
    stage.mkdir(exist_ok=True)
    check.library.mkdir(exist_ok=True)
    for name in ("setup.py", "args_fast", "kernels", "bench", "csrc"):
        link = stage / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)
    command = [check.python, str(stage / "setup.py"), "--quiet", "build"]
    command += ["--build-lib", str(check.library), "--build-temp", str(check.work / "objects")]
    outcome = check.run("build", ["env", "-C", str(stage), *command])
    cuda = check.device == "cuda" and any((ROOT / "csrc").glob("cuda/*.cu"))
    libraries = ["_cpu.so", *["_cuda.so"] * cuda]
    built = sorted(path.name for path in check.library.glob("args_fast/*.so"))
    missing = [name for name in libraries if name not in built]
    if missing:
        outcome.status, outcome.note = RED, f"not built: {', '.join(missing)}. {outcome.note}"
    elif outcome.status == OK:
        outcome.note = " ".join(built)
    return [outcome]


def test(check: Check) -> list[Outcome]:
    golden = [check.python, "-m", "args_fast.bench.engine_check", str(ROOT / "tests/golden")]
    outcomes = [check.run("golden decodes", [*golden, "--device", check.device])]
    absent = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if absent:
        note = f"{' and '.join(absent)} not installed here: the op tests were not run"
        outcomes.append(Outcome("op tests", SKIPPED, note))
        toy = ["--check", "--toy", "--results", str(check.work / "outputs")]
        return [*outcomes, check.run("op outputs", ops_command(check, *toy))]
    tests = TESTS if check.dry_run else TESTS + CUDA_TESTS
    command = [check.python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(ROOT), *(str(ROOT / name) for name in tests)]
    if not check.dry_run:  # golden decodes were run above, and an emulator proves nothing here
        command += ["-k", "not emulated and not published_tokens"]
    if find_spec("xdist") is not None and not check.dry_run:
        command += ["-n", "8"]  # most of the time is Triton's compiler
    # Processes that the tests start find the package by PYTHONPATH and not by their folder.
    variables = {"PYTHONSAFEPATH": "1", "ARGS_FAST_TEST_DEVICE": check.device}
    return [*outcomes, check.run("op tests", command, **variables)]


def sanitize(check: Check) -> list[Outcome]:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if check.device != "cuda":
        return [Outcome("sanitize", SKIPPED, "compute-sanitizer needs a GPU")]
    if not Path(tool).exists():
        return [Outcome("sanitize", SKIPPED, "compute-sanitizer is not on this machine")]
    outcomes = []
    end = check.end
    for kind, share in (("memcheck", 0.5), ("racecheck", 1.0)):
        check.end = time.monotonic() + share * (end - time.monotonic())
        # What torch tries and handles itself is not an error; compilers are not looked at.
        command = [tool, "--tool", kind, "--error-exitcode", "9", "--report-api-errors", "no"]
        command += ["--target-processes", "application-only", *ops_command(check, "--check")]
        command += ["--toy", "--results", str(check.work / kind)]
        # Without the allocator's pool every tensor has bounds of its own.
        outcomes.append(check.run(kind, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))
    return outcomes


def ops(check: Check) -> list[Outcome]:
    seconds = max(5.0, check.seconds_left - 15)
    more = ["--results", str(check.results), "--seconds", f"{seconds:.0f}"]
    return [check.run("ops", ops_command(check, *more, *["--toy"] * check.dry_run))]


def ops_command(check: Check, *more: str) -> list[str]:
    return [check.python, "-m", "args_fast.bench.ops_bench", "--device", check.device, *more]


STAGES: dict[str, Callable[[Check], list[Outcome]]] = {
    "build": build,
    "test": test,
    "sanitize": sanitize,
    "ops": ops,
}


# ---- the run -------------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    import torch

    device = options.device or ("cpu" if options.dry_run else "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        print(
            "torch sees no GPU here. On this machine: python bench/gpu_check.py --dry-run",
            file=sys.stderr,
        )
        return 2
    work = Path(options.work).resolve()
    check = Check(
        device=device,
        dry_run=options.dry_run,
        python=sys.executable,
        work=work,
        results=work / "results" if options.dry_run else ROOT / "bench" / "results",
        out=Path(options.out).resolve() if options.out else None,
    )
    work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    stages = {name: STAGES[name] for name in options.stage or STAGES}
    outcomes: list[Outcome] = []
    for number, (name, stage) in enumerate(stages.items(), 1):
        later = sum(BUDGET[other] for other in list(stages)[number:])
        share = options.seconds / sum(BUDGET[other] for other in stages)
        check.end = max(time.monotonic() + 1, end - later * share)
        try:
            parts = stage(check)
        except Exception as error:  # a stage that fails must not take the others along
            parts = [Outcome(name, RED, f"{type(error).__name__}: {error}")]
        print(*parts, sep="\n", flush=True)
        outcomes += parts
    red = [outcome.part for outcome in outcomes if outcome.status == RED]
    print(f"{len(outcomes)} parts, red: {', '.join(red) or 'none'}; logs in {work}")
    return bool(red)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stage", action="append", choices=STAGES, help="only this; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda, or cpu in a dry run")
    parser.add_argument("--seconds", type=float, default=sum(BUDGET.values()), help="in all (480)")
    parser.add_argument("--work", default=ROOT / "build" / "gpu-check", help="folder for the build")
    out = os.environ.get("OUT")
    parser.add_argument("--out", default=out, help="a further folder for results (default: $OUT)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
