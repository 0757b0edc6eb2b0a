"""The files of a model: where they are, and whether they are whole."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from args_fast.errors import LoadError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs"


def find(name: str | Path) -> str:
    """The model's folder or hub id, once its config.json is there: so what is misspelt fails with
    one sentence, and without a network after one try, not one for each file a model may have.

    Raises:
        LoadError: there is no such model, or it is an adapter.
    """
    if not isinstance(name, (str, Path)) or not str(name):
        raise LoadError(f"{name!r} is not a model; give a model's folder, or a hub id (org/name)")
    path = Path(name).expanduser()
    if path.is_file():
        raise LoadError(f"{name} is a file; give the folder that it is in, or a hub id (org/name)")
    if path.is_dir():
        if (path / ADAPTER).is_file():
            raise LoadError(_adapter(str(name), path / ADAPTER))
        if not (path / "config.json").is_file():
            raise LoadError(
                f"{name} has no config.json; a model's folder is what save_pretrained writes"
            )
        return str(path)
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise LoadError(f"there is no folder {name}; give a model's folder, or a hub id (org/name)")
    try:
        cached_file(name, "config.json")
    except (OSError, ValueError) as error:
        # The hub was reached, and has the repository: an adapter has no config.json.
        adapter = _of_hub(name, ADAPTER) if "does not appear to have a file" in str(error) else None
        if adapter:
            raise LoadError(_adapter(str(name), Path(adapter))) from error
        raise LoadError(
            f"{name} is not a folder here, and is not available from the hub: {words(error)}"
        ) from error
    return str(name)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model's safetensors files with its shape, from the files' headers. Empty
    for a model of the hub that has no such file.

    Raises:
        LoadError: a file is missing, cut off or not what it should be.
    """
    tensors: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(name):
        try:
            with safe_open(file, "pt") as opened:
                names = opened.keys()
                tensors |= {key: tuple(opened.get_slice(key).get_shape()) for key in names}
        except (SafetensorError, OSError) as error:
            raise LoadError(damage(file) or f"{file} cannot be read: {words(error)}") from error
    return tensors


def read(name: str, tensor: str) -> Tensor:
    """One tensor of a model's safetensors files."""
    for file in _weight_files(name):
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            if tensor in names:
                return opened.get_tensor(tensor)
    raise LoadError(f"{name} has no tensor {tensor}")


def damage(file: Path) -> str | None:
    """What is wrong with a file of a model, with its name; None where nothing can be seen."""
    try:
        size, head = file.stat().st_size, file.open("rb").read(len(POINTER))
    except OSError as error:
        return f"{file} cannot be read: {words(error)}"
    if head == POINTER:
        return (
            f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, "
            "or download it again"
        )
    if size == 0:
        return f"{file} is empty; download it again"
    if file.suffix == ".json":
        try:
            json.loads(file.read_text("utf-8"))
        except ValueError as error:
            return f"{file} is not valid JSON ({error}); download it again"
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return (
                f"{file} ({size} bytes) is damaged or cut off ({words(error)}); download it again"
            )
    return None


def damages(name: str | Path) -> str | None:
    """What is wrong with the first file of a local folder that is visibly damaged."""
    path = Path(name).expanduser()
    files = sorted(path.glob("*.json")) + sorted(path.glob("*.model")) if path.is_dir() else []
    return next(filter(None, map(damage, files)), None)


def broken_weights(named: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """The names of weights that hold a NaN or an infinity. Quantized ones are passed over."""
    for name, weight in named:
        data = weight.data
        if type(data) is not Tensor or data.is_meta or not data.is_floating_point():
            continue
        if data.numel() and not all(edge.isfinite() for edge in data.aminmax()):
            yield name


def words(error: BaseException) -> str:
    """A library's message in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def _weight_files(name: str) -> list[Path]:
    path = Path(name)
    if not path.is_dir():
        if whole := _of_hub(name, WEIGHTS):
            return [Path(whole)]
        index = _of_hub(name, INDEX)
        shards = [_of_hub(name, shard) for shard in _shards(Path(index))] if index else []
        return [Path(shard) for shard in shards if shard]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        files = [path / shard for shard in _shards(path / INDEX)]
        for file in files:
            if not file.is_file():
                raise LoadError(f"{file} is missing, which {INDEX} names; download it again")
        return files
    if any(path.glob("pytorch_model*.bin")):
        raise LoadError(
            f"{name} has its weights in pytorch_model.bin only, and args-fast reads safetensors "
            f"alone, for safety. Convert it once: args-fast convert {name} {path.name}-safetensors"
        )
    present = ", ".join(sorted(file.name for file in path.iterdir())[:8])
    raise LoadError(f"{name} has no weights: there is no {WEIGHTS} (it has {present})")


def _shards(index: Path) -> list[str]:
    try:
        files: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        return sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            damage(index) or f"{index} does not say which file holds which weight (weight_map)"
        ) from error


def _of_hub(name: str | Path, file: str) -> str | None:
    path: str | None = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return path


def _adapter(name: str, file: Path) -> str:
    """How an adapter becomes a model."""
    try:
        fields: Any = json.loads(file.read_text("utf-8"))
        base, task = fields.get("base_model_name_or_path"), str(fields.get("task_type"))
    except (ValueError, AttributeError):
        base, task = None, "None"
    kind, more = "CausalLM", ""
    if task == "SEQ_CLS":
        kind, more = "SequenceClassification", ", num_labels=1"
    return (
        f"{name} is an adapter (task {task}) of {base or 'a base model that it does not name'}, "
        "not a whole model. Merge it into its base once, with peft: "
        f"AutoPeftModelFor{kind}.from_pretrained({name!r}{more}).merge_and_unload()"
        ".save_pretrained('merged'), and give the folder 'merged'"
    )
