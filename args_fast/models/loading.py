"""Models and tokenizers from paths or hub ids, safely: safetensors only, no remote code."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from args_fast.errors import ConfigError, PairMismatchError, RewardHeadError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; args-fast runs on cpu and cuda")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device is {device!r}, but this torch ({torch.__version__}) sees no CUDA device; use "
            "device='cpu', or install a CUDA build of torch"
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {device!r}, but there are {torch.cuda.device_count()} of them"
        )
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    """ "auto" is the checkpoint's own on CUDA, float32 on the CPU (16-bit is slow there)."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ConfigError(f"dtype is {dtype!r}; it must be auto or one of {', '.join(DTYPES)}")
    return resolved


def load_lm(path: str | Path, device: torch.device, dtype: Any, **options: Any) -> PreTrainedModel:
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, use_safetensors=True, **options
    )
    return model.to(device).eval()


def load_rm(path: str | Path, device: torch.device, dtype: Any, **options: Any) -> PreTrainedModel:
    """Raises RewardHeadError where the checkpoint does not hold a head with one output, for which
    transformers would make one up with random weights."""
    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    labels = AutoConfig.from_pretrained(path, **trusted).num_labels
    if labels != 1:
        raise RewardHeadError(
            f"the reward model {path} has num_labels = {labels}; a reward is one number, so it "
            "must be 1. Use a model trained with num_labels=1; a language model has no reward head."
        )
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise RewardHeadError(
            f"the reward model {path} lacks the weights {', '.join(missing[:5])}: they would be "
            "random. Use a checkpoint saved by the *ForSequenceClassification it was trained as."
        )
    return model.to(device).eval()


def load_tokenizer(path: str | Path, **options: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer next to a model; None where the model comes without one."""
    files = (
        cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        for name in TOKENIZER_FILES
    )
    if not any(files):
        return None
    return AutoTokenizer.from_pretrained(path, **options)


def check_tokenizers(lm: PreTrainedTokenizerBase, rm: PreTrainedTokenizerBase) -> None:
    """Raises PairMismatchError unless the reward model reads every id as the language model does.
    The reward model may know more tokens (a padding token, say)."""
    ours, theirs = lm.get_vocab(), rm.get_vocab()
    differing = [token for token, id in ours.items() if theirs.get(token) != id]
    if not differing:
        probe = "Tokenizers that differ: naïve 12,345 tests\n\n\tdef f(x): return x  # 你好"
        if lm.encode(probe, add_special_tokens=False) == rm.encode(probe, add_special_tokens=False):
            return
    examples = (
        ", ".join(repr(token) for token in differing[:3]) or "none, but they split text apart"
    )
    raise PairMismatchError(
        "the language model and the reward model have different tokenizers: "
        f"{len(differing)} of {len(ours)} tokens have another id or none ({examples}). The reward "
        "model has to score the language model's tokens; use a pair trained with one tokenizer."
    )
