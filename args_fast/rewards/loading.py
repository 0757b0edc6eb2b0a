"""The reward that a folder or hub id holds: ``load`` takes the first kind that fits."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from args_fast.errors import (
    ConfigError,
    LoadError,
    PairMismatchError,
    RewardHeadError,
    UnsupportedModelError,
)
from args_fast.models import adapters, checkpoint, loading, pretrained
from args_fast.quantization import check as check_quantization
from args_fast.rewards.adapter import Adapter, load_adapted
from args_fast.rewards.base import Reward
from args_fast.rewards.classifier import Classifier
from args_fast.rewards.heads import HeadLike, Labels, linear_head, read_head
from args_fast.rewards.strings import TooLong
from args_fast.rewards.text import Text

logger = logging.getLogger(__name__)

# Heads that transformers' own class does not apply, as checkpoints name them.
HEAD_KEY = re.compile(
    r"^(?:v_head|value_head|reward_head|rm_head|classifier|regression_head)(?:\.summary)?\.weight$"
)
VALUE_HEAD_FILE = "value_head.safetensors"  # next to a language model, as LLaMA-Factory keeps it


def load(
    path: str | Path,
    *,
    lm: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str | None = None,
    template: Literal["auto", "chat", "plain", "pair"] = "auto",
    closing_ids: Sequence[int] | None = None,
    head: HeadLike = None,
    labels: Labels = None,
    too_long: TooLong = "error",
    tokenizers: Literal["alike", "strict"] = "alike",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    base: str | Path | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> Reward:
    """The reward at a path or hub id, as the first kind that fits: a LoRA adapter as Adapter, an
    encoder as Text, a decoder with a head as Classifier where its tokenizer gives the language
    model's ids their text and the engine can drive it, else as Text. A line of the log says which.

    Args:
        path: a folder or hub id (safetensors only).
        lm: the language model, or its path; it gives what of tokenizer, device and dtype is None.
        tokenizer: the language model's; where there is none, the ids are taken as they are.
        name: by which requests name it; the folder's by default.
        template, closing_ids, head, labels, too_long: as for the kinds; a ``head`` that is a file
            may be relative to the folder.
        tokenizers: "alike" takes reserved and added tokens that differ, and reads text where others
            do; "strict" refuses vocabularies that are not identical.
        device, dtype: of the model: "auto", "cpu", "cuda" ..., "float32" ...
        base: of an adapter, in place of the base model that it names.
        quantization: "int8" or "fp8" weights for its linear layers; the head stays.
        trust_remote_code: run code that comes with the model; off unless asked for.

    Raises:
        RewardHeadError, LoadError, PairMismatchError, ConfigError: what was found and what to do.
    """
    if tokenizers not in ("alike", "strict"):
        raise ConfigError(f"tokenizers is {tokenizers!r}; it must be 'alike' or 'strict'")
    options = {"trust_remote_code": trust_remote_code}
    if tokenizer is None and lm is not None:
        tokenizer = _tokenizer_of(lm, options)
    if isinstance(lm, PreTrainedModel):
        device, dtype = device or lm.device, dtype or lm.dtype
    place = loading.resolve_device(device or "auto")
    check_quantization(quantization, "quantization", place)
    kind = loading.resolve_dtype(dtype or "auto", place)
    model = _model(path, place, kind, options, several=labels is not None, head=head, base=base)
    own = loading.load_tokenizer(path, base=base, **options)
    if tokenizers == "strict" and own is not None and tokenizer is not None:
        _check_identical(tokenizer, own)
    common: dict[str, Any] = {
        "name": name or Path(str(path)).name,
        "template": template,
        "head": _beside(path, head),
        "labels": labels,
    }
    reward = _first_that_fits(path, model, own, tokenizer, closing_ids, too_long, common)
    reward.prepare(quantization)
    return reward


def _first_that_fits(
    path: Any, model: Any, own: Any, tokenizer: Any, closing_ids: Any, too_long: Any, common: dict
) -> Text | Classifier:
    plain = model.model if isinstance(model, adapters.Adapted) else model
    known = None if own is None or tokenizer is None else known_ids(tokenizer, own, plain)
    alike = own is None or tokenizer is None or known is not None
    if is_encoder(plain.config) or common["template"] == "pair" or not alike:
        if isinstance(model, adapters.Adapted) and common["head"] is None:
            common["head"] = model.head
        return _as_text(path, _whole(model), own, closing_ids, too_long=too_long, **common)
    made = Adapter if isinstance(model, adapters.Adapted) else Classifier
    theirs = None if tokenizer is None else own
    try:
        reward = made(model, theirs, closing_ids=closing_ids, known=known, **common)
    except RewardHeadError:
        raise
    except UnsupportedModelError as error:
        if theirs is None:
            raise
        logger.info("%s: %s", path, error)
        return _as_text(path, _whole(model), own, closing_ids, too_long=too_long, **common)
    logger.info("%s: a decoder with a head (rewards.%s)", path, made.__name__)
    return reward


def _split_alike(lm: PreTrainedTokenizerBase, rm: PreTrainedTokenizerBase) -> bool:
    """Whether both split a text with a bit of everything into the same ids."""
    ours, theirs = (each.encode(loading.PROBE, add_special_tokens=False) for each in (lm, rm))
    return ours == theirs


def _check_identical(lm: PreTrainedTokenizerBase, rm: PreTrainedTokenizerBase) -> None:
    """Raises PairMismatchError unless both give every text the same ids."""
    ours, theirs = lm.get_vocab(), rm.get_vocab()
    tokens = [token for token in ours | theirs if ours.get(token) != theirs.get(token)]
    if tokens or not _split_alike(lm, rm):
        examples = ", ".join(map(repr, tokens[:3])) or "none, but they split text apart"
        raise PairMismatchError(
            "the language model and the reward model have different tokenizers: "
            f"{len(tokens)} tokens have another id or none ({examples}). tokenizers='alike' takes "
            "reserved and added tokens that differ, and reads text where others do"
        )


def _tokenizer_of(lm: Any, options: dict) -> PreTrainedTokenizerBase | None:
    source: Any = lm.name_or_path if isinstance(lm, PreTrainedModel) else lm
    return loading.load_tokenizer(source, **options) if str(source) else None


def _model(
    path: Any,
    device: torch.device,
    dtype: Any,
    options: dict,
    *,
    several: bool,
    head: HeadLike,
    base: Any,
) -> Any:
    """The model of a path, or the parts of an adapter's."""
    if adapters.is_folder(path):
        return load_adapted(path, device, dtype, base=base, **options)
    if is_encoder(pretrained.load_config(checkpoint.find(path), options)):
        return _plain(path, device, dtype, options)
    return _decoder(path, device, dtype, options, several=several, head=head)


def _whole(model: Any) -> PreTrainedModel:
    """A model, or that of an adapter, merged."""
    return model.merged() if isinstance(model, adapters.Adapted) else model


def _as_text(
    path: Any,
    model: PreTrainedModel,
    own: PreTrainedTokenizerBase | None,
    closing_ids: Sequence[int] | None,
    **options: Any,
) -> Text:
    if own is None:
        raise LoadError(
            f"the reward model {path} reads text, and comes without a tokenizer; save one there, "
            "or use rewards.Text(model, tokenizer)"
        )
    if closing_ids is not None:
        raise ConfigError(
            f"closing_ids are for rewards that read the language model's ids, and {path} reads "
            "text; its template closes the answer (template='chat')"
        )
    logger.info("%s: it reads text (rewards.Text)", path)
    return Text(model, own, **options)


def _beside(path: Any, head: HeadLike) -> HeadLike:
    """A head's file that is named relative to the model's folder, as the path that it is."""
    file = Path(str(path)) / head if isinstance(head, (str, Path)) else None
    return file if file is not None and file.is_file() else head


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
    if not _split_alike(lm, rm):
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


def _decoder(
    path: Any, device: torch.device, dtype: Any, options: dict, *, several: bool, head: HeadLike
) -> PreTrainedModel:
    """A decoder with its head, under whatever usual name and in whatever usual file.

    Args:
        several: whether the head may have several outputs.
        head: where it is instead; a language model without one will do then.
    """
    name = checkpoint.find(path)
    if head is not None and "CausalLM" in str(pretrained.load_config(name, options).architectures):
        return loading.load_lm(path, device, dtype, **options)
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
        return loading.load_rm(path, device, dtype, several=several, **options)
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


def as_reward(rm: Any) -> Reward:
    """A reward of whatever stands for one: a reward, a model, a PeftModel. Raises ArgsError."""
    if isinstance(rm, Reward):
        return rm
    if adapters.has_adapter(rm):
        return Adapter(rm, name="reward")
    if isinstance(rm, PreTrainedModel) and is_encoder(rm.config):
        raise PairMismatchError(
            f"{type(rm).__name__} is a bidirectional encoder, which reads text: use "
            "rewards.Text(model, tokenizer) with its own tokenizer, in place of the model"
        )
    return Classifier(rm, name="reward")
