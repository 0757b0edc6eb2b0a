"""``args-fast convert``: weights in pickle files, once, into a folder with safetensors."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from args_fast.cli.console import errors_in_a_line, fail, note, notes

EXAMPLES = """
[bold]Examples[/]

[dim]# a reward model of 2023, then used[/]

args-fast convert old-rm new-rm

args-fast generate "How do I teach my spaniel to sit?" --lm org/lm --rm new-rm
"""
WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Weights in other formats, which a copy does not need.
LEFT_BEHIND = {".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt", ".onnx", ".safetensors", ".gguf"}


def convert(
    source: Annotated[
        Path, typer.Argument(help="A model's folder with pytorch_model.bin.", metavar="IN")
    ],
    target: Annotated[
        Path, typer.Argument(help="A new folder for the same model in safetensors.", metavar="OUT")
    ],
) -> None:
    """Convert a model whose weights are pytorch_model.bin to safetensors.

    The files are read without running code that may be in them (torch's weights_only).
    """
    with errors_in_a_line():
        files = _files(source)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            fail(f"{target} exists already and is not an empty folder; name a new one")
        with notes.status("[dim]converting[/]"):
            target.parent.mkdir(parents=True, exist_ok=True)
            # Put in its place when it is whole, so that a failure leaves nothing there.
            with TemporaryDirectory(dir=target.parent, prefix=".converting-") as folder:
                model = Path(folder) / "model"
                model.mkdir()
                count, size = _convert(files, model)
                _copy_the_rest(source, model)
                model.replace(target)
        note(f"{count} tensors, {size / 1e6:.1f} MB, in {target}")


def _convert(files: list[Path], model: Path) -> tuple[int, int]:
    """Write each file's tensors, and which file has which; returns how many, and their bytes."""
    where: dict[str, str] = {}
    size = 0
    for file in files:
        name = file.with_suffix(".safetensors").name.replace("pytorch_model", "model")
        tensors = _read(file)
        _write(tensors, model / name)
        where |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (model / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return len(where), size


def _files(source: Path) -> list[Path]:
    """The files with the weights."""
    if not source.is_dir():
        fail(f"there is no folder {source}; give a model's folder (a model of the hub, downloaded)")
    if (source / WEIGHTS).is_file():
        return [source / WEIGHTS]
    if (source / INDEX).is_file():
        try:
            shards = set(json.loads((source / INDEX).read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            fail(f"{source / INDEX} does not say which file holds which weight (weight_map)")
        files = [source / Path(shard).name for shard in sorted(shards)]
        for file in files:
            if not file.is_file():
                fail(f"{file} is missing, which {INDEX} names; download it again")
        return files
    if any(source.glob("*.safetensors")):
        fail(f"{source} has safetensors already; use it as it is")
    fail(f"{source} has no {WEIGHTS}; there is nothing to convert")


def _read(file: Path) -> dict[str, Any]:
    """The tensors of one file, each with memory of its own: tied ones are written twice."""
    import torch

    from args_fast.models.checkpoint import damage, words

    if damaged := damage(file):
        fail(damaged)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # unpickling may raise anything
        fail(f"{file} cannot be read without running code in it, or is damaged: {words(error)}")
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        fail(f"{file} is not a table of weights; save the model's state_dict() to it")
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}


def _is_zip(file: Path) -> bool:
    """Whether torch can map the file into memory, which it does with all since torch 1.6."""
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def _write(tensors: dict[str, Any], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})


def _copy_the_rest(source: Path, target: Path) -> None:
    """Configuration and tokenizer."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in LEFT_BEHIND and file.name != INDEX:
            shutil.copyfile(file, target / file.name)
