"""Results as data: one JSON file per device, day and code, written whole after every case."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import args_fast
from args_fast.bench.cases import Case
from args_fast.bench.timing import slug
from args_fast.errors import ConfigError

SCHEMA = 1
# What decides a file's place and whether it may be added to: the rest of the environment is noted.
IDENTITY = ("device", "threads", "versions", "cuda", "commit", "code")
FALLBACK = "bench-results"


def default_folder() -> tuple[Path, bool]:
    """Where results are kept, and whether that is in a checkout: bench/results there, else
    ./bench-results."""
    bench = Path(__file__).resolve().parent
    if (bench.parent / "pyproject.toml").is_file():
        return bench / "results", True
    return Path.cwd() / FALLBACK, False


def code_fingerprint() -> str:
    """Of the package's source and libraries: tells two states of a changed checkout apart, and
    stands in for a commit where there is none."""
    digest = hashlib.sha256()
    root = Path(args_fast.__file__).resolve().parent
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".so")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


@dataclass
class Results:
    """One file of results.

    Attributes:
        path: where it is written; a copy goes into ``copy_to``, in a folder of the same name.
        environment: timing.environment, with the code's fingerprint under "code".
        machine: "type" (cpu, cuda); measured: "bandwidth" in bytes/s, "peak" {dtype: flops/s}.
        cases: key -> {"case", "complete", "attempts", "seconds", "methods": {name: figures or
            {"error"}}, "parts": {name: seconds} or "parts_error"}; see runner.py. "added" tells
            which methods came later than the others, and what ARGS took beside them.
    """

    path: Path
    environment: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    dry_run: bool = False
    copy_to: Path | None = None

    def write(self) -> None:
        """Replace the file in one move: a reader, or a crash, never meets half of it."""
        record = {
            "schema": SCHEMA,
            "dry_run": self.dry_run,
            "environment": self.environment,
            "machine": self.machine,
            "cases": self.cases,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_name(self.path.name + ".half")
        half.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        os.replace(half, self.path)
        if self.copy_to is not None:
            folder = self.copy_to / self.path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path, folder / self.path.name)

    @classmethod
    def read(cls, path: Path) -> "Results":
        record = json.loads(path.read_text())
        if record.get("schema") != SCHEMA:
            raise ConfigError(
                f"{path} has schema {record.get('schema')}; this version reads {SCHEMA}. Remove it "
                "and measure again."
            )
        return cls(
            path, record["environment"], record["machine"], record["cases"], record["dry_run"]
        )

    def missing(self, case: Case) -> tuple[str, ...]:
        """The methods that are still to be measured: all of them where the case was interrupted,
        and none where its models did not fit."""
        record = self.cases.get(case.key, {})
        if not record.get("complete"):
            return case.methods
        if "error" in record:
            return ()
        return tuple(name for name in case.methods if name not in record["methods"])


def open_results(
    folder: Path, environment: dict[str, Any], *, dry_run: bool, copy_to: Path | None
) -> Results:
    """The file of this device, these versions and this code, to be added to; a new one where there
    is none yet."""
    environment = environment | {"code": code_fingerprint()}
    for found in read_all(folder):
        same = all(found.environment.get(part) == environment.get(part) for part in IDENTITY)
        if same and found.dry_run == dry_run:
            found.copy_to = copy_to
            return found
    device = folder / slug(environment["device"])
    path = device / f"{'dry-run-' * dry_run}{_name(environment)}.json"
    for count in range(2, 1000):
        if not path.exists():
            break
        path = path.with_name(f"{path.stem.partition('.')[0]}.{count}.json")
    return Results(path, environment, dry_run=dry_run, copy_to=copy_to)


def _name(environment: dict[str, Any]) -> str:
    """<date>-<commit>; with the code's fingerprint where the commit does not say it all."""
    day = datetime.now(timezone.utc).date().isoformat()
    commit: str = environment["commit"]
    if commit.endswith("+") or commit == "unknown":
        commit = f"{commit.rstrip('+')}-{environment['code']}"
    return f"{day}-{commit}"


def read_all(folder: Path) -> Iterator[Results]:
    """Every file under a folder, oldest first."""
    for path in sorted(folder.glob("*/*.json"), key=lambda path: path.name):
        if "schema" in json.loads(path.read_text()):  # other benchmarks have files here too
            yield Results.read(path)
