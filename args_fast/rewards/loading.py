"""The reward that a folder or hub id holds: ``load`` takes the first kind that fits."""

import copy
import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from args_fast.errors import LoadError, PairMismatchError, RewardHeadError
from args_fast.models import checkpoint, loading, pretrained
from args_fast.rewards.base import Reward
from args_fast.rewards.classifier import Classifier
from args_fast.rewards.text import Text

logger = logging.getLogger(__name__)

# Heads that transformers' own class does not apply, as checkpoints name them.
HEAD_KEY = re.compile(
    r"^(?:v_head|value_head|reward_head|rm_head|classifier|regression_head)(?:\.summary)?\.weight$"
)
VALUE_HEAD_FILE = "value_head.safetensors"  # next to a language model, as LLaMA-Factory keeps it
PROBE = "Tokenizers that differ: naïve 12,345 tests\n\n\tdef f(x): return x  # 你好"


def load(
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    device: torch.device,
    dtype: Any,
    base: str | Path | None = None,
    **options: Any,
) -> Reward:
    """The reward at a path or hub id: a merged adapter, an encoder as Text, a decoder with a head
    as Classifier where its tokenizer gives the language model's ids their text, else as Text.

    Args:
        path: a folder or hub id (safetensors only).
        tokenizer: the language model's; None takes the ids as they are.
        device, dtype: of the model.
        base: of an adapter, in place of the base model that it names.
        options: of from_pretrained: ``trust_remote_code``.

    Raises:
        RewardHeadError, LoadError, PairMismatchError: what was found and what to do.
    """
    name = Path(str(path)).name
    if Path(path).is_dir() and (Path(path) / "adapter_config.json").is_file():
        model, own = _merged(Path(path), base, device, dtype, options)
    else:
        own = loading.load_tokenizer(path, **options)
        config = pretrained.load_config(checkpoint.find(path), options)
        if is_encoder(config):
            model = _plain(path, device, dtype, options)
            if own is None:
                raise LoadError(
                    f"the reward model {path} is an encoder without a tokenizer next to it; save "
                    "its tokenizer there, or use rewards.Text(model, tokenizer)"
                )
            logger.info("%s: an encoder; it reads text (rewards.Text)", path)
            return Text(model, own, name=name)
        model = _decoder(path, device, dtype, options)
    if own is None or tokenizer is None:
        logger.info("%s: a decoder with a head (rewards.Classifier)", path)
        return Classifier(model)
    known = known_ids(tokenizer, own, model)
    if known is None:
        logger.info("%s: another tokenizer; it reads text (rewards.Text)", path)
        return Text(model, own, name=name)
    logger.info("%s: a decoder with a head (rewards.Classifier)", path)
    return Classifier(model, own, known=known)


def is_encoder(config: Any) -> bool:
    """Whether a model of this configuration is a bidirectional encoder."""
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def known_ids(
    lm: PreTrainedTokenizerBase, rm: PreTrainedTokenizerBase, model: PreTrainedModel
) -> torch.Tensor | None:
    """[V] bool: which of the language model's ids mean the same to the reward model; None where its
    tokenizer is another one. Reserved and added tokens may have other names."""
    ours, theirs = lm.get_vocab(), rm.get_vocab()
    added = set(lm.get_added_vocab()) | set(rm.get_added_vocab()) | set(lm.all_special_tokens)
    differing = [token for token, id in ours.items() if theirs.get(token) != id]
    if any(token not in added for token in differing):
        return None
    if lm.encode(PROBE, add_special_tokens=False) != rm.encode(PROBE, add_special_tokens=False):
        return None
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.num_embeddings
    if ours == theirs:
        return torch.ones(rows, dtype=torch.bool)
    with_text = set(theirs.values())
    size = max(*ours.values(), rows - 1) + 1
    return torch.tensor([id < rows and id in with_text for id in range(size)])


# ---- models --------------------------------------------------------------------------------------


def _plain(path: Any, device: torch.device, dtype: Any, options: dict) -> PreTrainedModel:
    """A ``*ForSequenceClassification`` whose weights are all there."""
    name = checkpoint.find(path)
    model, report = pretrained.load(
        AutoModelForSequenceClassification, name, "reward model", dtype, options
    )
    if report.missing:
        raise RewardHeadError(
            f"the reward model {path} lacks {pretrained.listed(report.missing)}: they would be "
            "random. Use a checkpoint saved by the *ForSequenceClassification it was trained as."
        )
    pretrained.check_unused(model, report.unexpected, f"the reward model {path}")
    return pretrained.finish(model, device, f"the reward model {path}")


def _decoder(path: Any, device: torch.device, dtype: Any, options: dict) -> PreTrainedModel:
    """A decoder with its head, under whatever usual name and in whatever usual file."""
    name = checkpoint.find(path)
    tensors = checkpoint.shapes(name)
    keys = [key for key in tensors if HEAD_KEY.match(key)]
    file = Path(str(path)) / VALUE_HEAD_FILE
    if "score.weight" in tensors or not (keys or file.is_file()):
        return loading.load_rm(path, device, dtype, **options)
    if keys:
        weight, bias = checkpoint.read(name, keys[0]), None
        bias_key = keys[0].removesuffix("weight") + "bias"
        if bias_key in tensors:
            bias = checkpoint.read(name, bias_key)
    else:
        weight, bias = _value_head(file)
    outputs = options | {"num_labels": weight.shape[0]}
    model, report = pretrained.load(
        AutoModelForSequenceClassification, name, "reward model", dtype, outputs
    )
    missing = [key for key in report.missing if not key.startswith("score.")]
    if missing:
        raise RewardHeadError(
            f"the reward model {path} lacks {pretrained.listed(missing)}: they would be random. "
            "Use a checkpoint with all of its weights."
        )
    score = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        score.weight.copy_(weight)
        if bias is not None:
            score.bias.copy_(bias)
    model.score = score.to(next(model.parameters()).dtype)
    return pretrained.finish(model, device, f"the reward model {path}")


def _value_head(file: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    from safetensors.torch import load_file

    tensors = load_file(file)
    weights = [x for x in tensors.values() if x.dim() == 2]
    biases = [x for x in tensors.values() if x.dim() == 1]
    if len(weights) != 1 or len(biases) > 1:
        raise RewardHeadError(
            f"{file} holds {', '.join(sorted(tensors))}; a value head's file has one weight "
            "matrix, and at most one bias"
        )
    return weights[0], biases[0] if biases else None


def _merged(
    path: Path, base: str | Path | None, device: torch.device, dtype: Any, options: dict
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A LoRA adapter merged into its base, and the tokenizer next to either."""
    if find_spec("peft") is None:
        raise LoadError(
            f"{path} holds a LoRA adapter (adapter_config.json), which needs peft: pip install "
            "peft; or merge it into its base (merge_and_unload) and save the whole model"
        )
    from peft import PeftModel

    config = json.loads((path / "adapter_config.json").read_text())
    base = base or config.get("base_model_name_or_path")
    tensors = _adapter_shapes(path)
    heads = [shape for key, shape in tensors.items() if re.search(r"\.(score|classifier)\.", key)]
    if not heads:
        raise RewardHeadError(
            f"the adapter {path} holds no trained reward head (its modules_to_save is "
            f"{config.get('modules_to_save')}): the head would be random. Train it with "
            "modules_to_save=['score'], or give the head: rewards.Classifier(model, head=...)"
        )
    if not base:
        raise LoadError(
            f"the adapter {path} does not name its base model; pass base=, or set "
            "base_model_name_or_path in adapter_config.json"
        )
    name = checkpoint.find(base)
    model, _ = pretrained.load(
        AutoModelForSequenceClassification,
        name,
        "base of the reward adapter",
        dtype,
        options | {"num_labels": heads[0][0]},
    )
    merged: Any = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    logger.info("%s: a LoRA adapter, merged into a copy of its base %s", path, base)
    has_tokenizer = (path / "tokenizer_config.json").is_file()
    tokenizer = (
        pretrained.translated(
            lambda: AutoTokenizer.from_pretrained(path, **options), str(path), "tokenizer"
        )
        if has_tokenizer
        else loading.load_tokenizer(base, **options)
    )
    return pretrained.finish(merged, device, f"the reward model {path}"), tokenizer


def _adapter_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        raise LoadError(
            f"{path} has no adapter_model.safetensors; save the adapter with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    try:
        with safe_open(file, "pt") as opened:
            keys = opened.keys()
            return {key: tuple(opened.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{file} cannot be read: {error}") from error


def as_reward(rm: Any) -> Reward:
    """A reward of whatever stands for one: a reward, a model, a PeftModel. Raises ArgsError."""
    if isinstance(rm, Reward):
        return rm
    if hasattr(rm, "merge_and_unload"):
        return Classifier(copy.deepcopy(rm).merge_and_unload())
    if isinstance(rm, PreTrainedModel) and is_encoder(rm.config):
        raise PairMismatchError(
            f"{type(rm).__name__} is a bidirectional encoder, which reads text: use "
            "rewards.Text(model, tokenizer) with its own tokenizer, in place of the model"
        )
    return Classifier(rm)
