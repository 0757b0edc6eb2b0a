"""LoRA adapters of peft, merged into their base: a folder, a PeftModel, or a model that
transformers has put one into."""

import copy
import json
import logging
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from args_fast.errors import LoadError, RewardHeadError
from args_fast.models import checkpoint, pretrained

logger = logging.getLogger(__name__)

HEAD = re.compile(r"(^|\.)(score|classifier)\.")
WEIGHTS = "adapter_model.safetensors"
VALUE_HEAD = "value_head.safetensors"  # next to an adapter of a language model, by LLaMA-Factory


@dataclass(frozen=True)
class AdapterFolder:
    """A folder that peft has saved.

    Attributes:
        path: of the folder.
        task: "CAUSAL_LM", "SEQ_CLS" or what else peft calls it; "None" where it does not say.
        base: the folder or hub id of its base model.
    """

    path: Path
    task: str
    base: str

    @classmethod
    def read(cls, path: Path, base: str | Path | None = None) -> "AdapterFolder":
        """With another base than the one it names, perhaps. Raises LoadError."""
        if find_spec("peft") is None:
            raise LoadError(
                f"{path} is a LoRA adapter ({checkpoint.ADAPTER}), which needs peft: pip install "
                "peft; or merge it into its base (merge_and_unload) and save the whole model"
            )
        try:
            config = json.loads((path / checkpoint.ADAPTER).read_text("utf-8"))
            base = base or config.get("base_model_name_or_path")
        except (ValueError, AttributeError, OSError) as error:
            raise LoadError(f"{path / checkpoint.ADAPTER} cannot be read: {error}") from error
        if not base:
            raise LoadError(
                f"the adapter {path} does not name its base model; pass base=, or set "
                f"base_model_name_or_path in {checkpoint.ADAPTER}"
            )
        return cls(path, str(config.get("task_type")), str(base))

    @property
    def labels(self) -> int | None:
        """Outputs of the trained head in it; None where there is none."""
        shapes = _shapes(self.path).items()
        sizes = [shape[0] for key, shape in shapes if HEAD.search(key) and shape]
        return sizes[0] if sizes else None

    @property
    def value_head(self) -> Path | None:
        """The file of a value head next to it."""
        file = self.path / VALUE_HEAD
        return file if file.is_file() else None


@dataclass(frozen=True)
class Merged:
    """An adapter's model, merged, and the file of its head where that is not part of the model."""

    model: PreTrainedModel
    head: Path | None


def is_folder(path: str | Path) -> bool:
    """Whether a path is an adapter's folder."""
    return (Path(path).expanduser() / checkpoint.ADAPTER).is_file()


def load_language_model(path: Path, dtype: Any, options: dict[str, Any]) -> PreTrainedModel:
    """An adapter of a language model, merged. Raises LoadError."""
    folder = check_language_model(path)
    return _merged(folder, AutoModelForCausalLM, "base of the adapter", dtype, options)


def check_language_model(path: Path) -> AdapterFolder:
    """An adapter's folder, once it is not one of a reward model. Raises LoadError."""
    folder = AdapterFolder.read(path)
    if folder.task == "SEQ_CLS" or folder.labels is not None:
        raise LoadError(
            f"{path} is an adapter of a reward model (task {folder.task}, base {folder.base}), not "
            "of a language model: pass it as the reward model, and a causal language model in its "
            "place"
        )
    return folder


def load_reward_model(
    path: Path, dtype: Any, options: dict[str, Any], base: str | Path | None = None
) -> Merged:
    """An adapter of a reward model, merged; that of a language model where the head is in a file
    next to it. Raises RewardHeadError where no head was trained, LoadError."""
    folder = AdapterFolder.read(path, base)
    role = "base of the reward adapter"
    if folder.labels is None and folder.value_head is not None:
        model = _merged(folder, AutoModelForCausalLM, role, dtype, options)
        return Merged(model, folder.value_head)
    if folder.labels is not None:
        options = options | {"num_labels": folder.labels}
    return Merged(_merged(folder, AutoModelForSequenceClassification, role, dtype, options), None)


def _merged(
    folder: AdapterFolder, kind: Any, role: str, dtype: Any, options: dict[str, Any]
) -> PreTrainedModel:
    from peft import PeftModel

    path, base = folder.path, checkpoint.find(folder.base)
    model, report = pretrained.load(kind, base, role, dtype, options)
    missing = [key for key in report.missing if not HEAD.search(f".{key}")]
    if missing:
        raise LoadError(
            f"{folder.base}, the base of the adapter {path}, lacks {pretrained.listed(missing)}: "
            "they would be random. Use a whole checkpoint as its base."
        )
    if len(missing) < len(report.missing) and folder.labels is None:
        raise RewardHeadError(
            f"the adapter {path} has no trained reward head, and neither has its base "
            f"{folder.base}: it would be random. Train the adapter with modules_to_save=['score'], "
            f"or save its head next to it as {VALUE_HEAD}"
        )
    merged: PreTrainedModel = pretrained.translated(
        lambda: PeftModel.from_pretrained(model, str(path)).merge_and_unload(), str(path), "adapter"
    )
    logger.info("%s: a LoRA adapter, merged into a copy of its base %s", path, folder.base)
    return merged


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    file = path / WEIGHTS
    if not file.is_file():
        raise LoadError(
            f"{path} has no {WEIGHTS}; save the adapter with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    try:
        with safe_open(file, "pt") as opened:
            keys = opened.keys()
            return {key: tuple(opened.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{file} cannot be read: {error}") from error


# ---- objects -------------------------------------------------------------------------------------


def has_adapter(model: Any) -> bool:
    """Whether an object is a PeftModel, or a model that transformers has put an adapter into."""
    is_peft = hasattr(model, "merge_and_unload") and hasattr(model, "peft_config")
    return is_peft or bool(getattr(model, "_hf_peft_config_loaded", False))


def merged_copy(model: Any) -> PreTrainedModel:
    """The model with its active adapters merged, a copy: the caller's stays as it is."""
    model = copy.deepcopy(model)
    if hasattr(model, "merge_and_unload"):
        merged: PreTrainedModel = model.merge_and_unload()
        return merged
    _merge_modules(model)
    model._hf_peft_config_loaded = False
    return model


def _merge_modules(parent: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for name, child in parent.named_children():
        if isinstance(child, BaseTunerLayer):
            child.merge()
            setattr(parent, name, child.get_base_layer())
        elif isinstance(child, ModulesToSaveWrapper):
            active = child.active_adapters if hasattr(child, "active_adapters") else []
            kept = child.modules_to_save[active[0]] if active else child.original_module
            setattr(parent, name, kept)
        else:
            _merge_modules(child)
