"""The reward that a folder or hub id holds: ``load`` takes the first kind that fits."""

import copy
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from args_fast.errors import LoadError, PairMismatchError, RewardHeadError, UnsupportedModelError
from args_fast.models import checkpoint, loading, pretrained
from args_fast.rewards import adapters
from args_fast.rewards.base import Reward
from args_fast.rewards.classifier import Classifier
from args_fast.rewards.heads import linear_head, read_head
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
    as Classifier where its tokenizer gives the language model's ids their text and the engine can
    drive it, else as Text.

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
    if (Path(str(path)) / checkpoint.ADAPTER).is_file():
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
    try:
        reward = Classifier(model, own, known=known)
    except UnsupportedModelError as error:
        logger.info("%s: %s It reads text (rewards.Text)", path, error)
        return Text(model, own, name=name)
    logger.info("%s: a decoder with a head (rewards.Classifier)", path)
    return reward


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
        return torch.ones(rows, dtype=torch.bool, device="cpu")
    with_text = set(theirs.values())
    size = max(*ours.values(), rows - 1) + 1
    return torch.tensor([id < rows and id in with_text for id in range(size)], device="cpu")


# ---- models --------------------------------------------------------------------------------------


def _plain(path: Any, device: torch.device, dtype: Any, options: dict) -> PreTrainedModel:
    """A ``*ForSequenceClassification`` whose weights are all there."""
    name = checkpoint.find(path)
    checkpoint.shapes(name)  # there are files, and they are whole
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
    file = Path(name) / VALUE_HEAD_FILE
    heads = [key for key in (loading.SCORE,) if key in tensors] + keys
    heads += [VALUE_HEAD_FILE] if file.is_file() else []
    if len(heads) > 1:
        raise RewardHeadError(
            f"the reward model {path} has several heads: {', '.join(heads)}. Say which: load it, "
            "and pass rewards.Classifier(model, head=...) in its place"
        )
    if not heads or heads[0] == loading.SCORE:
        return loading.load_rm(path, device, dtype, **options)
    if keys:
        bias_key = keys[0].removesuffix("weight") + "bias"
        bias = checkpoint.read(name, bias_key) if bias_key in tensors else None
        score = linear_head(checkpoint.read(name, keys[0]), bias, str(path))
    else:
        score = linear_head(*read_head(file), str(file))
    outputs = options | {"num_labels": score.out_features}
    model, report = pretrained.load(
        AutoModelForSequenceClassification, name, "reward model", dtype, outputs
    )
    _check_body(model, report, f"the reward model {path}")
    if keys and keys[0] in model.state_dict():  # the class has this head itself
        return pretrained.finish(model, device, f"the reward model {path}")
    own = getattr(model, "score", None)
    if not isinstance(own, nn.Linear) or own.in_features != score.in_features:
        raise RewardHeadError(
            f"the reward head of {path} reads {score.in_features} numbers, and "
            f"{type(model).__name__} does not give as many; use the head that was trained with it"
        )
    model.score = score.to(next(model.parameters()).dtype)
    return pretrained.finish(model, device, f"the reward model {path}")


def _check_body(model: PreTrainedModel, report: pretrained.Report, name: str) -> None:
    """Raises LoadError unless all weights but the head's are there, and used."""
    missing = [key for key in report.missing if not key.startswith("score.")]
    if missing:
        raise LoadError(
            f"{name} lacks {pretrained.listed(missing)}: they would be random. Use a checkpoint "
            "with all of its weights"
        )
    pretrained.check_unused(model, report.unexpected, name)


def _merged(
    path: Path, base: str | Path | None, device: torch.device, dtype: Any, options: dict
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A LoRA adapter merged into its base, and the tokenizer next to either."""
    adapter = adapters.read(path, base)
    name = checkpoint.find(adapter.base)
    checkpoint.shapes(name)  # there are files, and they are whole
    model, report = pretrained.load(
        AutoModelForSequenceClassification,
        name,
        "base of the reward adapter",
        dtype,
        options | {"num_labels": adapter.outputs},
    )
    _check_body(model, report, f"the base {adapter.base} of the reward adapter {path}")
    merged = adapters.merge(model, adapter)
    logger.info("%s: a LoRA adapter, merged into a copy of its base %s", path, adapter.base)
    has_tokenizer = (path / "tokenizer_config.json").is_file()
    tokenizer = (
        loading.tokenizer_in(str(path), **options)
        if has_tokenizer
        else loading.load_tokenizer(adapter.base, **options)
    )
    return pretrained.finish(merged, device, f"the reward model {path}"), tokenizer


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
