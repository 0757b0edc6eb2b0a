"""A folder with a LoRA adapter of a reward model: what is in it, and how its base becomes whole."""

import json
import re
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from args_fast.errors import LoadError, RewardHeadError
from args_fast.models import checkpoint, pretrained

WEIGHTS = "adapter_model.safetensors"
HEAD = re.compile(r"\.(?:score|classifier)\.(?:modules_to_save\.(?:\w+\.)?)?weight$")


@dataclass(frozen=True)
class AdapterFolder:
    """What an adapter says of itself.

    Attributes:
        path: its folder.
        base: the folder or hub id of the model that it adapts.
        outputs: of its reward head.
        keys: the names of its weights.
    """

    path: Path
    base: str
    outputs: int
    keys: frozenset[str]


def read(path: Path, base: str | Path | None = None) -> AdapterFolder:
    """What the folder holds; ``base`` stands in place of the base model that it names. Raises
    LoadError, RewardHeadError."""
    if find_spec("peft") is None:
        raise LoadError(
            f"{path} holds a LoRA adapter ({checkpoint.ADAPTER}), which needs peft: pip install "
            "peft; or merge it into its base (merge_and_unload) and save the whole model"
        )
    fields = _fields(path / checkpoint.ADAPTER)
    shapes = _shapes(path / WEIGHTS)
    heads = [shape for key, shape in shapes.items() if HEAD.search(key) and len(shape) == 2]
    if not heads:
        raise RewardHeadError(
            f"the adapter {path} holds no trained reward head (its modules_to_save is "
            f"{fields.get('modules_to_save')}): the head would be random. Train it with "
            "modules_to_save=['score'], or give the head: rewards.Classifier(model, head=...)"
        )
    base = base or fields.get("base_model_name_or_path")
    if not base or not isinstance(base, (str, Path)):
        raise LoadError(
            f"the adapter {path} does not name its base model; pass base=, or set "
            f"base_model_name_or_path in {checkpoint.ADAPTER}"
        )
    return AdapterFolder(path, str(base), heads[0][0], frozenset(shapes))


def merge(model: PreTrainedModel, adapter: AdapterFolder) -> PreTrainedModel:
    """The base with the adapter added to its weights. Raises LoadError where their weights do not
    fit each other: peft would leave out what it does not find."""
    from peft import PeftModel, get_peft_model_state_dict

    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are missing: below
            return PeftModel.from_pretrained(model, str(adapter.path))

    adapted = pretrained.translated(load, str(adapter.path), "reward adapter")
    expected = set(get_peft_model_state_dict(adapted))
    if expected != adapter.keys:
        lacks = sorted(expected - adapter.keys) or sorted(adapter.keys - expected)
        verb = "lacks" if expected - adapter.keys else "has, and its configuration does not,"
        raise LoadError(
            f"the adapter {adapter.path} {verb} {pretrained.listed(lacks)}; use the "
            f"{checkpoint.ADAPTER} and the base that it was trained with"
        )
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _fields(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            checkpoint.damage(file) or f"{file} cannot be read: {checkpoint.words(error)}"
        ) from error
    if not isinstance(fields, dict):
        raise LoadError(f"{file} is not the configuration of an adapter: it is not a JSON object")
    return fields


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if not file.is_file():
        raise LoadError(
            f"{file.parent} has no {WEIGHTS}; save the adapter with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    try:
        with safe_open(file, "pt") as opened:
            keys = opened.keys()
            return {key: tuple(opened.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        raise LoadError(checkpoint.damage(file) or f"{file} cannot be read: {error}") from error
