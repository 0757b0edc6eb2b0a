"""Rows of a data set: of a file that is read here, or of what ``datasets`` can load."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from args_fast.errors import EvaluationError

PLAIN_FILES = {".json", ".jsonl", ".txt"}
OTHER_FILES = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
# The hub entry of this set is a script, which is not run; its file is read.
HUB_FILES = {"tatsu-lab/alpaca_eval": "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"}


def read_rows(path: str, split: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set.

    Args:
        path: a .json, .jsonl or .txt file, which needs no further package; or a .parquet, .csv or
            .arrow file, a folder, or a hub id, which need ``datasets``.
        split: of a folder or a hub id.

    Raises:
        EvaluationError: the rows are not available.
    """
    file = Path(path).expanduser()
    if file.suffix in PLAIN_FILES:
        return _read(file)
    try:
        from datasets import load_dataset
    except ImportError:
        raise EvaluationError(
            f"{path} is not a .json, .jsonl or .txt file, and others need the package datasets: "
            "pip install 'args-fast[eval]'"
        ) from None
    try:
        if file.suffix in OTHER_FILES:
            return load_dataset(OTHER_FILES[file.suffix], data_files=str(file), split="train")
        if path in HUB_FILES:
            return load_dataset("json", data_files=HUB_FILES[path], split="train")
        return load_dataset(str(file) if file.is_dir() else path, split=split)
    except Exception as error:  # datasets raises what its many readers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EvaluationError(
            f"cannot load {path} (split {split}): {reason}. A local .jsonl file with the same "
            "fields works without a network"
        ) from error


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".txt":
            return [{"prompt": line} for line in text.split("\n") if line.strip()]
        if file.suffix == ".json":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except OSError as error:
        raise EvaluationError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{file} is not UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{file} is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{file} must hold a list of objects, or one object a line")
    return rows
