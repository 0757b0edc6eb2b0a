"""Everything that only a machine with a GPU can show: three visits of six to eight minutes.

    python scripts/gpu_check.py A             build, tests, the slowdown of the paper's pair, trace
    python scripts/gpu_check.py B             the fused layers, and the slowdown with them
    python scripts/gpu_check.py C             ops against peers, sanitizer, 7B, batches, copies
    python scripts/gpu_check.py A --dry-run   the same on this machine's CPU, at toy sizes

Each stands alone and begins with a build of the package with its C++ and CUDA ops, into
build/gpu-check: nothing is installed, and the torch that is there is used as it is. A stage has a
time of its own and is ended when it is over; one that fails does not keep the others from running.
The exit status is 1 if anything was wrong. Results are in bench/results/<device>/, and all that
there is (logs too) in one archive, gpu-A.tar.gz in $OUT or --out: it is written again all the
time, so it is there also after a kill.

The same command again continues what was not finished. --stage NAME runs one stage alone.
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
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Stages of a visit, with their seconds; what a stage leaves over goes to the later ones.
VISITS: dict[str, dict[str, int]] = {
    "A": {"build": 75, "golden": 90, "test": 140, "headline": 130, "trace": 35},
    "B": {
        "build": 75,
        "fused-golden": 30,
        "layers": 120,
        "fused": 110,
        "fused-trace": 20,
    },
    "C": {"build": 75, "ops": 60, "sanitize": 200, "models": 125},
}
# What needs no GPU is left to the machines without one.
OP_TESTS = ("tests/ops/test_on_device.py", "tests/engine/test_engine_on_device.py")
CUDA_TESTS = ("tests/csrc/test_cuda_ops.py",)
LAYER_TESTS = ("tests/ops/test_layers_on_device.py",)
LOADED = "from args_fast.ops import cuda as c; print(c.status()); exit(c.status() != 'built')"
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
        variables.pop("OUT", None)  # what they write comes back in the archive
        if self.library.exists():  # else what is installed is checked
            variables["PYTHONPATH"] = str(self.library)
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
        seconds = round(time.monotonic() - began, 1)
        return Outcome(part, OK if code == 0 else RED, note + last.strip()[:300], seconds)


Stage = Callable[[Check], list[Outcome]]


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
        return [outcome]
    if outcome.status == OK:
        outcome.note = " ".join(built)
    # A library that does not load is a warning elsewhere.
    return [outcome, *([check.run("CUDA ops", [check.python, "-c", LOADED])] if cuda else [])]


def golden(check: Check) -> list[Outcome]:
    return [published(check, "golden decodes")]


def fused_golden(check: Check) -> list[Outcome]:
    """Whole decodes with the layers as one op, before they are timed."""
    return [published(check, "golden decodes, fused layers", "--fused-layers")]


def published(check: Check, part: str, *more: str) -> Outcome:
    """The decodes of the published code, alone and in batches."""
    command = [check.python, str(ROOT / "tests/helpers/published_decodes.py")]
    rehearsed = ["--every", "12"] if check.dry_run else []  # tests/test_golden.py has them all
    return check.run(part, [*command, "--device", check.device, *rehearsed, *more])


def test(check: Check) -> list[Outcome]:
    if absent := no_tests():
        toy = ["--check", "--toy", "--results", str(check.work / "outputs")]
        outcome = check.run("op outputs", program(check, "ops_bench", *toy))
        return [Outcome("op tests", SKIPPED, f"{absent}: they were not run"), outcome]
    return [run_tests(check, "op tests", OP_TESTS if check.dry_run else OP_TESTS + CUDA_TESTS)]


def layers(check: Check) -> list[Outcome]:
    if absent := no_tests():
        return [Outcome("layer tests", SKIPPED, f"{absent}: they were not run")]
    return [run_tests(check, "layer tests", LAYER_TESTS)]


def no_tests() -> str:
    """What the tests want and this machine does not have."""
    absent = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed here" if absent else ""


def run_tests(check: Check, part: str, tests: tuple[str, ...]) -> Outcome:
    command = tests_command(check, tests)
    # Golden decodes have a stage, and an emulator proves nothing there; a rehearsal runs a few.
    chosen = "not emulated and not published_tokens"
    command += ["-k", "commit or record or replay" if check.dry_run else chosen]
    if find_spec("xdist") is not None and not check.dry_run:
        command += ["-n", "8"]  # most of the time is Triton's compiler
    return check.run(part, command, **test_variables(check))


def tests_command(check: Check, tests: tuple[str, ...]) -> list[str]:
    command = [check.python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    return [*command, "--rootdir", str(ROOT), *(str(ROOT / name) for name in tests)]


def test_variables(check: Check) -> dict[str, str]:
    # Processes that the tests start find the package by PYTHONPATH and not by their folder.
    return {"PYTHONSAFEPATH": "1", "ARGS_FAST_TEST_DEVICE": check.device}


def sanitize(check: Check) -> list[Outcome]:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if check.device != "cuda" or not Path(tool).exists():
        return [Outcome("sanitize", SKIPPED, "compute-sanitizer is not here, or no GPU")]
    absent = no_tests()
    skipped = [Outcome("sanitize layers", SKIPPED, absent)] if absent else []
    parts = ("ops",) if absent else ("ops", "layers")
    # Kernels are compiled without a tool, which would make that take several times as long.
    commands = sanitized(check, "compile")
    variables = test_variables(check)
    compiled = [check.run(f"compile {what}", commands[what], **variables) for what in parts]

    def look(kind: str, what: str) -> Outcome:
        # What torch tries and handles itself is not an error; compilers are not looked at.
        command = [tool, "--tool", kind, "--error-exitcode", "9", "--report-api-errors", "no"]
        # The tool waits 10 seconds for the first call of CUDA, and imports can take longer.
        command += ["--launch-timeout", "60", "--target-processes", "application-only"]
        command += sanitized(check, kind)[what]
        # Without the allocator's pool every tensor has bounds of its own.
        bounds = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return check.run(f"{kind} {what}", command, **variables, **bounds)

    with ThreadPoolExecutor() as pool:  # at once: nothing is timed
        looked = [pool.submit(look, *run) for run in product(("memcheck", "racecheck"), parts)]
    return [*skipped, *compiled, *(each.result() for each in looked)]


def sanitized(check: Check, kind: str) -> dict[str, list[str]]:
    """What a sanitizer looks at: every op at sizes whose programs meet (splits, merges, tickets),
    and the decoder layers with norms before and after."""
    toy = ["--check", "--toy", "--results", str(check.work / kind)]
    tests = tests_command(check, tuple(f"{name}::test_layers" for name in LAYER_TESTS))
    return {
        "ops": program(check, "ops_bench", *toy),
        "layers": [*tests, "-k", "bfloat16 and (llama or opt-350m)"],
    }


def ops(check: Check) -> list[Outcome]:
    more = ["--results", str(check.results), *seconds(check, 15), *["--toy"] * check.dry_run]
    return [check.run("ops", program(check, "ops_bench", *more))]


def sweep(part: str, cases: str) -> Stage:
    """The slowdown over a set of cases."""

    def stage(check: Check) -> list[Outcome]:
        more = ["--set", cases, "--results", str(check.results), *seconds(check, 10, "--budget")]
        more += ["--rounds", "3", *["--rehearse"] * check.dry_run]
        return [check.run(part, program(check, "sweep", *more))]

    return stage


def trace(part: str, *more: str) -> Stage:
    """What a replayed step does."""

    def stage(check: Check) -> list[Outcome]:
        command = [check.python, str(ROOT / "scripts/graph_trace.py"), "--device", check.device]
        command += ["--results", str(check.results), *more, *["--rehearse"] * check.dry_run]
        return [check.run(part, command)]

    return stage


def program(check: Check, module: str, *options: str) -> list[str]:
    """The command of a module of bench/ on the device of this run."""
    command = [check.python, "-m", f"args_fast.bench.{module}"]
    return [*command, "--device", check.device, *options]


def seconds(check: Check, spare: int, option: str = "--seconds") -> list[str]:
    """As long as the stage has, less what its end takes."""
    return [option, f"{max(5.0, check.seconds_left - spare):.0f}"]


STAGES: dict[str, Stage] = {
    "build": build,
    "golden": golden,
    "fused-golden": fused_golden,
    "test": test,
    "headline": sweep("headline", "A"),
    "trace": trace("trace"),
    "layers": layers,
    "fused": sweep("fused", "B"),
    "fused-trace": trace("fused trace", "--fused-layers"),
    "ops": ops,
    "sanitize": sanitize,
    "models": sweep("models", "C"),
}


# ---- what comes back -----------------------------------------------------------------------------


class Archive:
    """Logs and results of a visit in one file that is whole at any time: written next to it, then
    moved there, twice a second and at the end."""

    def __init__(self, file: Path, check: Check, every: float = 0.5) -> None:
        self.file = file
        self._check = check
        self._every = every
        self._began = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Archive":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.pack()

    def pack(self) -> None:
        part = self.file.with_name(self.file.name + ".part")
        with tarfile.open(part, "w:gz") as archive:
            for path in self._files():
                with contextlib.suppress(FileNotFoundError):  # replaced while it was read
                    root = self._check.work if path.suffix == ".log" else self._check.results
                    archive.add(path, path.relative_to(root))
        part.replace(self.file)

    def _files(self) -> list[Path]:
        logs = self._check.work.glob("*.log")
        made = (p for p in self._check.results.rglob("*") if p.suffix in (".json", ".md"))
        new = (path for path in made if path.stat().st_mtime >= self._began)
        return sorted([*logs, *new])

    def _keep(self) -> None:
        while not self._ended.wait(self._every):
            self.pack()


# ---- the run -------------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    import torch

    device = options.device or ("cpu" if options.dry_run else "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        print(
            "torch sees no GPU here. On this machine: python scripts/gpu_check.py --dry-run",
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
    )
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    budget = VISITS[options.visit]
    stages = {name: budget[name] for name in options.stage or budget}
    out = Path(options.out).resolve() if options.out else work
    with Archive(out / f"gpu-{options.visit}.tar.gz", check) as archive:
        outcomes = visit(check, stages, options.seconds or sum(stages.values()))
    red = [outcome.part for outcome in outcomes if outcome.status == RED]
    print(f"{len(outcomes)} parts, red: {', '.join(red) or 'none'}; all of it: {archive.file}")
    return bool(red)


def visit(check: Check, stages: dict[str, int], seconds: float) -> list[Outcome]:
    """Run the stages, each to the end of its share of the time."""
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for number, name in enumerate(stages, 1):
        later = sum(list(stages.values())[number:])
        check.end = max(time.monotonic() + 1, end - later * seconds / sum(stages.values()))
        try:
            parts = STAGES[name](check)
        except Exception as error:  # a stage that fails must not take the others along
            parts = [Outcome(name, RED, f"{type(error).__name__}: {error}")]
        print(*parts, sep="\n", flush=True)
        outcomes += parts
    return outcomes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("visit", choices=VISITS, help="which of the three")
    parser.add_argument("--stage", action="append", help="only this one of it; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda, or cpu in a dry run")
    parser.add_argument("--seconds", type=float, help="in all (the sum of the stages')")
    parser.add_argument("--work", default=ROOT / "build" / "gpu-check", help="folder for the build")
    out = os.environ.get("OUT")
    parser.add_argument("--out", default=out, help="folder of the archive (default: $OUT)")
    options = parser.parse_args()
    unknown = set(options.stage or ()) - set(VISITS[options.visit])
    if unknown:
        parser.error(f"{options.visit} has the stages {', '.join(VISITS[options.visit])}")
    return options


if __name__ == "__main__":
    sys.exit(main())
