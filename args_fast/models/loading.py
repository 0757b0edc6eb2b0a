"""Models and tokenizers from paths or hub ids, safely: safetensors only, no remote code."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as MULTIMODAL,
)
from transformers.utils import cached_file

from args_fast.errors import ConfigError, LoadError, RewardHeadError
from args_fast.models import adapters, checkpoint, pretrained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

PROBE = "Tokenizers that differ: naïve 12,345 tests\n\n\tdef f(x): return x  # 你好"
SCORE, BIAS = "score.weight", "score.bias"
# What heads other than a language model's are called, and the language model's.
HEAD = re.compile(
    r"(^|\.)(score|classifier|classification_head|v_head|value_head|reward_head|rm_head|scalar_head"
    r"|regression_head|summary|qa_outputs)\."
)
VALUE_HEAD = re.compile(r"(^|\.)(v_head|value_head)\.")
WAYS_WITHOUT_HEAD = (
    "For the log-probabilities of a language model as rewards use rewards.Autoregressive(model); "
    "for a head in a file rewards.load(path, head='value_head.safetensors')."
)
LM_HEADS = ("lm_head.", "embed_out.", "output_layer.", "cls.")


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
    """Raises LoadError where the checkpoint is not a whole language model, for which transformers
    would make up what is missing with random weights."""
    if adapters.is_folder(path):
        merged = adapters.load_language_model(Path(path).expanduser(), dtype, options)
        return pretrained.finish(merged, device, f"the language model {path}")
    name = checkpoint.find(path)
    config = pretrained.load_config(name, options)
    tensors = checkpoint.shapes(name)
    heads = [key for key in tensors if HEAD.search(key)]
    if "CausalLM" in str(config.architectures):
        heads = [key for key in heads if not VALUE_HEAD.search(key)]  # what PPO leaves on a policy
    if heads and not any(key.startswith(LM_HEADS) for key in tensors):
        raise LoadError(
            f"{path} is a reward model or another classifier (it has {heads[0]}), not a language "
            "model: pass it as the reward model, and a causal language model in its place"
        )
    kind: Any = AutoModelForCausalLM
    if type(config) in MULTIMODAL and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = AutoModelForImageTextToText
    model, report = pretrained.load(kind, name, "language model", dtype, options)
    if report.missing:
        raise LoadError(
            f"the language model {path} lacks {pretrained.listed(report.missing)}: they would be "
            "random. Use a checkpoint saved by the *ForCausalLM it was trained as; where "
            "the output layer is the embedding, config.json has tie_word_embeddings: true"
        )
    pretrained.check_unused(model, report.unexpected, f"the language model {path}")
    return pretrained.finish(model, device, f"the language model {path}")


def load_rm(
    path: str | Path,
    device: torch.device,
    dtype: Any,
    *,
    several: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """The number of outputs is what the head in the file has: many configurations do not say it.

    Args:
        path, device, dtype, options: as for ``ArgsDecoder.from_pretrained``.
        several: whether the head may have several outputs.

    Raises:
        RewardHeadError: the checkpoint does not hold a head with one output, for which transformers
            would make one up with random weights.
        LoadError: it cannot be loaded, or lacks other weights.
    """
    name = checkpoint.find(path)
    outputs = pretrained.load_config(name, options).num_labels
    tensors = checkpoint.shapes(name)
    if len(head_shape := tensors.get(SCORE, ())) == 2:
        outputs = head_shape[0]
    if outputs != 1 and not (several and SCORE in tensors):
        raise RewardHeadError(_not_one_output(str(path), outputs, tensors))
    model, report = pretrained.load(
        AutoModelForSequenceClassification,
        name,
        "reward model",
        dtype,
        options | {"num_labels": outputs},
    )
    if report.missing:
        raise RewardHeadError(
            f"the reward model {path} lacks {pretrained.listed(report.missing)}: they would be "
            "random. Use a checkpoint saved by the *ForSequenceClassification it was trained as."
            + (f" {WAYS_WITHOUT_HEAD}" if report.missing == [SCORE] else "")
            + _other_heads(tensors)
        )
    unexpected = report.unexpected
    if BIAS in unexpected and isinstance(head := getattr(model, "score", None), nn.Linear):
        # What *ForTokenClassification has; its reward is the same head's, read at the last token.
        head.bias = nn.Parameter(checkpoint.read(name, BIAS).to(head.weight.dtype))
        unexpected = [key for key in unexpected if key != BIAS]
    if of_another := [key for key in unexpected if HEAD.search(key)]:
        raise RewardHeadError(
            f"the reward model {path} has {pretrained.listed(of_another)} next to {SCORE}, parts "
            "of two heads. Remove what does not belong to it, or load the model and pass "
            "rewards.Classifier(model, head=...)"
        )
    pretrained.check_unused(model, unexpected, f"the reward model {path}")
    return pretrained.finish(model, device, f"the reward model {path}")


def load_tokenizer(
    path: str | Path, *, base: str | Path | None = None, **options: Any
) -> PreTrainedTokenizerBase | None:
    """The tokenizer next to a model or an adapter, or to the adapter's base (``base`` in its
    place); None where it comes without one. Raises LoadError."""
    if adapters.is_folder(path):
        folder = Path(path).expanduser()
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):
            return load_tokenizer(adapters.AdapterFolder.read(folder, base).base, **options)
        name = str(folder)
    else:
        name = checkpoint.find(path)
        files = (
            cached_file(name, file, _raise_exceptions_for_missing_entries=False)
            for file in TOKENIZER_FILES
        )
        if not any(files):
            return None
    return tokenizer_in(name, **options)


def tokenizer_in(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id that has one. Raises LoadError."""

    def load() -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        tokenizer.decode(tokenizer(PROBE).input_ids)  # some faults show only in use
        return tokenizer

    return pretrained.translated(load, name, "tokenizer")


def _not_one_output(path: str, outputs: int | None, tensors: dict[str, tuple[int, ...]]) -> str:
    if SCORE in tensors:
        return (
            f"the head of the reward model {path} has {outputs} outputs (labels); a reward is one "
            "number. Say which is the reward: labels=1 (--rm-labels 1), or labels={1: 1.0, 0: "
            "-1.0} for a weighted sum, for rewards.load; or use a model trained with num_labels=1."
        )
    return (
        f"the reward model {path} has no reward head ({SCORE}), and num_labels = {outputs}. Use a "
        f"model trained with num_labels=1. {WAYS_WITHOUT_HEAD}" + _other_heads(tensors)
    )


def _other_heads(tensors: dict[str, tuple[int, ...]]) -> str:
    others = [f"{key} {list(shape)}" for key, shape in tensors.items() if HEAD.search(key)]
    if not others or SCORE in tensors:
        return ""
    return (
        f" It has {', '.join(others[:3])}: if that is a linear reward head, rename its weight to "
        f"{SCORE} (safetensors.torch.load_file, save_file) and set num_labels to 1 in config.json."
    )
