"""Where results are kept, and how they are written: never half a file, and a copy where asked."""

import argparse
import hashlib
import json
import os
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from args_fast.bench.timing import environment, slug

FALLBACK = "bench-results"  # in the current folder, outside a checkout
SOURCES = (".py", ".so")
SAME = ("device", "threads", "versions", "switches", "commit", "sources")


def root() -> Path:
    """bench/results of a checkout; a folder in the current one elsewhere."""
    bench = Path(__file__).resolve().parent
    checkout = (bench.parent / "pyproject.toml").is_file()
    return bench / "results" if checkout else Path.cwd() / FALLBACK


def sources() -> str:
    """A fingerprint of the code that runs, with binaries and tables. It is known without git, and
    changes with every edit, as a commit does not."""
    digest = hashlib.sha256()
    for package in ("args_fast", "args_fast.kernels", "args_fast.bench"):
        folder = Path(next(iter(import_module(package).__path__))).resolve()
        for path in sorted(p for p in folder.rglob("*") if p.suffix in SOURCES):
            if root() not in path.parents:  # what was measured is not what is measured
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def parser(purpose: str | None) -> argparse.ArgumentParser:
    """The command line of a program that writes results; it adds its own options."""
    style = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=purpose, formatter_class=style)
    options.add_argument("--results", type=Path, help="folder for results (bench/results)")
    return options


def begin(folder: Path | None, kind: str, device: torch.device, **empty: Any) -> tuple[Path, dict]:
    """The document to continue, and its file: the newest of this kind that the same code has made
    on the same device, or a new one.

    Args:
        folder: Has a folder for each device; None: ``root()``.
        kind: What the document holds; its name begins with it.
        device: Where it is measured.
        empty: The fields of a new document, the environment aside.
    """
    facts = environment(device) | {"sources": sources()}
    folder = (folder or root()) / slug(facts["device"])
    for path in sorted(folder.glob(f"{kind}-2*.json"), reverse=True):
        document: dict[str, Any] = json.loads(path.read_text())
        if all(document["environment"].get(name) == facts[name] for name in SAME):
            return path, document
    day = datetime.now(timezone.utc).date().isoformat()
    path = folder / f"{kind}-{day}-{facts['commit'].rstrip('+')}-{facts['sources'][:6]}.json"
    return path, {"environment": facts, **empty}


def write(path: Path, document: dict[str, Any], markdown: str) -> None:
    """The document as JSON and, next to it, as Markdown; both also into the folder $OUT."""
    folders = [path.parent]
    if os.environ.get("OUT"):
        folders.append(Path(os.environ["OUT"]))
    texts = {".json": json.dumps(document, indent=1, allow_nan=False) + "\n", ".md": markdown}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            part = folder / f".{path.stem}{suffix}.part"
            part.write_text(text)
            part.replace(folder / f"{path.stem}{suffix}")
