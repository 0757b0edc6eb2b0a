"""LoRA adapters of peft with their base: a folder, a PeftModel, or a model that transformers has
put one into."""

import copy
import json
import logging
import re
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from args_fast.errors import LoadError, RewardHeadError
from args_fast.models import checkpoint, pretrained
from args_fast.models.low_rank import LowRank, merge
from args_fast.models.peft_layers import Inseparable, take_apart

logger = logging.getLogger(__name__)

HEAD = re.compile(r"(?:^|\.)(?:score|classifier)\.(?:modules_to_save\.(?:\w+\.)?)?weight$")
OF_HEAD = re.compile(r"(?:^|\.)(?:score|classifier)\.")
WEIGHTS = "adapter_model.safetensors"
VALUE_HEAD = "value_head.safetensors"  # next to an adapter of a language model, by LLaMA-Factory


@dataclass(frozen=True)
class AdapterFolder:
    """A folder that peft has saved.

    Attributes:
        path: of the folder.
        task: "CAUSAL_LM", "SEQ_CLS" or what else peft calls it; "None" where it does not say.
        base: the folder or hub id of its base model.
        promises_head: whether its configuration says that a head was trained.
    """

    path: Path
    task: str
    base: str
    promises_head: bool

    @classmethod
    def read(cls, path: Path, base: str | Path | None = None) -> "AdapterFolder":
        """With another base than the one it names, perhaps. Raises LoadError."""
        if find_spec("peft") is None:
            raise LoadError(
                f"{path} is a LoRA adapter ({checkpoint.ADAPTER}), which needs peft: pip install "
                "peft; or merge it into its base (merge_and_unload) and save the whole model"
            )
        fields = _fields(path / checkpoint.ADAPTER)
        base = base or fields.get("base_model_name_or_path")
        if not base or not isinstance(base, (str, Path)):
            raise LoadError(
                f"the adapter {path} does not name its base model; pass base=, or set "
                f"base_model_name_or_path in {checkpoint.ADAPTER}"
            )
        saved = fields.get("modules_to_save") or ()
        promises = any(module in saved for module in ("score", "classifier"))
        return cls(path, str(fields.get("task_type")), str(base), promises)

    @property
    def labels(self) -> int | None:
        """Outputs of the trained head in it; None where there is none."""
        shapes = _shapes(self.path).items()
        sizes = [shape[0] for key, shape in shapes if HEAD.search(key) and len(shape) == 2]
        return sizes[0] if sizes else None

    @property
    def value_head(self) -> Path | None:
        """The file of a value head next to it."""
        file = self.path / VALUE_HEAD
        return file if file.is_file() else None


@dataclass
class Adapted:
    """A model with an adapter that is merged into it, or still apart.

    Attributes:
        model: the base with its head, without peft's layers.
        terms: what the adapter adds to the model's linear layers; None once it is merged.
        biases: whether the adapter has trained biases, which are in the model.
        reason: why the adapter had to be merged.
        head: the file of the head where that is not part of the model.
    """

    model: PreTrainedModel
    terms: list[LowRank] | None
    biases: bool = False
    reason: str = ""
    head: Path | None = None

    def merged(self) -> PreTrainedModel:
        """The model with the adapter merged into it from now on."""
        merge(self.model.base_model, self.terms or ())
        self.terms = None
        return self.model


def is_folder(path: str | Path) -> bool:
    """Whether a path is an adapter's folder."""
    if not isinstance(path, (str, Path)) or not str(path):
        return False  # what is wrong with it is for ``checkpoint.find`` to say
    return (Path(path).expanduser() / checkpoint.ADAPTER).is_file()


def load_language_model(path: Path, dtype: Any, options: dict[str, Any]) -> PreTrainedModel:
    """An adapter of a language model, merged. Raises LoadError."""
    folder = check_language_model(path)
    adapted = _load(folder, AutoModelForCausalLM, "adapter", dtype, options)
    merged: PreTrainedModel = adapted.merge_and_unload()
    logger.info("%s: a LoRA adapter, merged into a copy of its base %s", folder.path, folder.base)
    return merged


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
) -> Adapted:
    """An adapter of a reward model; that of a language model where the head is in a file next to
    it. Raises RewardHeadError where no head was trained, LoadError."""
    folder = AdapterFolder.read(path, base)
    kind: Any = AutoModelForSequenceClassification
    head = folder.value_head if folder.labels is None else None
    if head is not None:
        kind = AutoModelForCausalLM
    elif folder.labels is not None:
        options = options | {"num_labels": folder.labels}
    adapted = _load(folder, kind, "reward adapter", dtype, options)
    return replace(taken_apart(adapted), head=head)


def _load(folder: AdapterFolder, kind: Any, role: str, dtype: Any, options: dict[str, Any]) -> Any:
    """The PeftModel."""
    base = checkpoint.find(folder.base)
    checkpoint.shapes(base)  # there are files, and they are whole
    model, report = pretrained.load(kind, base, f"base of the {role}", dtype, options)
    name = f"the base {folder.base} of the {role} {folder.path}"
    missing = [key for key in report.missing if not OF_HEAD.search(key)]
    if missing:
        raise LoadError(
            f"{name} lacks {pretrained.listed(missing)}: they would be random. Use a checkpoint "
            "with all of its weights"
        )
    pretrained.check_unused(model, report.unexpected, name)
    headless = folder.promises_head or len(missing) < len(report.missing)
    if headless and folder.labels is None and kind is not AutoModelForCausalLM:
        raise RewardHeadError(
            f"the adapter {folder.path} holds no trained reward head: the head would be random. "
            f"Train it with modules_to_save=['score'], or save its head next to it as {VALUE_HEAD}"
        )
    return _adapted(model, folder, role)


def _adapted(model: PreTrainedModel, folder: AdapterFolder, role: str) -> Any:
    """The base with the adapter in it. Raises LoadError where their weights do not fit each other:
    peft would leave out what it does not find."""
    from peft import PeftModel, get_peft_model_state_dict

    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are missing: below
            return PeftModel.from_pretrained(model, str(folder.path))

    adapted = pretrained.translated(load, str(folder.path), role)
    expected, keys = set(get_peft_model_state_dict(adapted)), set(_shapes(folder.path))
    if expected != keys:
        lacks = sorted(expected - keys) or sorted(keys - expected)
        verb = "lacks" if expected - keys else "has, and its configuration does not,"
        raise LoadError(
            f"the adapter {folder.path} {verb} {pretrained.listed(lacks)}; use the "
            f"{checkpoint.ADAPTER} and the base that it was trained with"
        )
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.active_peft_config.peft_type.value
        raise LoadError(
            f"the adapter {folder.path} is of the kind {kind}, which has no weights to merge; "
            "LoRA and IA3 adapters can be used"
        )
    return adapted


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
        raise LoadError(checkpoint.damage(file) or f"{file} cannot be read: {error}") from error


# ---- objects -------------------------------------------------------------------------------------


def has_adapter(model: Any) -> bool:
    """Whether an object is a PeftModel, or a model that transformers has put an adapter into."""
    is_peft = hasattr(model, "merge_and_unload") and hasattr(model, "peft_config")
    return is_peft or bool(getattr(model, "_hf_peft_config_loaded", False))


def taken_apart(model: Any) -> Adapted:
    """A model with an adapter in it as one without, and the adapter's terms; merged where it is
    more than terms. The model itself is used up."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    configs = getattr(model, "peft_config", None) or {}
    biases = any(getattr(config, "bias", "none") != "none" for config in configs.values())
    terms, reason = None, ""
    try:
        terms = take_apart(plain)
    except Inseparable as error:
        reason = str(error)
    return Adapted(_merged(plain if terms is not None else model), terms, biases, reason)


def merged_copy(model: Any) -> PreTrainedModel:
    """The model with its active adapters merged, a copy: the caller's stays as it is."""
    return _merged(copy.deepcopy(model))


def _merged(model: Any) -> PreTrainedModel:
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
