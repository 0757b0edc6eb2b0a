"""What a result was made with: versions, commit, machine, and hashes of models and data."""

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

from args_fast import __version__
from args_fast.machine import processor, versions

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "nltk", "scipy", "statsmodels")
HASHED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
BLOCK = 1 << 22  # bytes


def environment() -> dict[str, Any]:
    """Versions of what computes, the commit of this checkout if it is one, and the processor."""
    installed = {name: number for name, number in versions(PACKAGES).items() if number}
    own = {"args-fast": __version__, "python": platform.python_version()}
    return {"versions": own | installed, "commit": commit(), "processor": processor()}


def commit() -> str | None:
    """The commit of the checkout that this package lies in, with "-dirty" where its files differ;
    None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        revision, changes = (
            subprocess.run(
                ["git", *command],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("-dirty" if changes else "")


def model_hash(name: str) -> str | None:
    """A model's content in one line: sha256 of a folder's weights, configuration and tokenizer, or
    the hub's revision; None where neither is known."""
    folder = Path(name)
    if folder.is_dir():
        digest = hashlib.sha256()
        for file in sorted({file for pattern in HASHED for file in folder.glob(pattern)}):
            digest.update(f"{file.name}\0{file_hash(file)}\0".encode())
        return f"sha256:{digest.hexdigest()}"
    from transformers.utils import cached_file

    try:
        config = cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if config is None else f"revision:{Path(config).parent.name}"


def file_hash(file: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
