"""From what ``EngineOptions.draft`` says to drafts, or to why there can be none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import quantization
from args_fast.drafting.base import Drafts
from args_fast.drafting.history import AutoDrafts, History
from args_fast.drafting.ngram import NGrams
from args_fast.drafting.small_lm import SmallLM
from args_fast.errors import ConfigError, PairMismatchError
from args_fast.models import adapters, loading
from args_fast.models.backbone import Backbone

# By the name that ``EngineOptions.draft`` takes.
KINDS: dict[str, type[Drafts]] = {"auto": AutoDrafts, "ngram": NGrams, "history": History}

NONE = "Use draft=None"


class Judged(Protocol):
    """What is read of a reward."""

    rows_per_candidate: int | None


def load_drafts(
    draft: Any,
    lm: Backbone,
    tokenizer: PreTrainedTokenizerBase | None,
    rewards: Mapping[str, Judged],
) -> Drafts | None:
    """The drafts of an engine; None where there are none, or where "auto" leaves them off.

    Args:
        draft: None, a key of ``KINDS``, a path or hub id of a small language model, such a model,
            or an object that drafts.
        lm: the language model.
        tokenizer: of the language model.
        rewards: by name.

    Raises:
        ConfigError: it is something else, or drafts cannot be verified on this device or by these
            rewards; the message says what to do.
        PairMismatchError: the small model has another tokenizer.
        LoadError, UnsupportedModelError, ProofError: the small model cannot be loaded or driven.
    """
    if draft is None:
        return None
    refusing = [name for name, reward in rewards.items() if reward.rows_per_candidate is None]
    why = _obstacle(lm, refusing)
    if draft == "auto":
        return None if why else AutoDrafts()
    if why:
        raise ConfigError(f"draft is {_shown(draft)}, and {why}")
    if isinstance(draft, Drafts):
        return draft
    if isinstance(draft, str) and draft in KINDS:
        return KINDS[draft]()
    if adapters.has_adapter(draft):
        draft = adapters.merged_copy(draft)
    if isinstance(draft, PreTrainedModel):
        small = SmallLM(draft)
    elif isinstance(draft, (str, Path)):
        small = _load(draft, lm, tokenizer)
    else:
        raise ConfigError(
            f"draft is {_shown(draft)}; it must be None, {', '.join(map(repr, KINDS))}, or a small "
            "language model with the same tokenizer: a folder, a hub id or the model"
        )
    small.attach(lm)
    return small


def _obstacle(lm: Backbone, refusing: list[str]) -> str:
    """Why drafts cannot be verified; empty where they can."""
    if lm.device.type != "cpu":
        return (
            f"the language model is on {lm.device}: drafts are verified on the CPU only, where no "
            f"step is replayed as a graph. {NONE}, or device='cpu'"
        )
    if refusing:
        return (
            f"the reward {' and '.join(refusing)} reads one step at a time and cannot judge the "
            f"candidates of several. {NONE}, or a reward that is a decoder model with a head "
            "(rewards.Classifier) or a head on the language model (rewards.Head)"
        )
    return ""


def _load(path: str | Path, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> SmallLM:
    own = loading.load_tokenizer(path)
    if tokenizer is not None and own is not None and not _alike(tokenizer, own):
        raise PairMismatchError(
            f"the draft model {path} has another tokenizer than the language model, so its tokens "
            f"would mean other text; use one of the same family. {NONE} to go without"
        )
    model = loading.load_lm(path, lm.device, lm.layout.dtype)
    quantization.prepare(model, None, head=True)
    return SmallLM(model)


def _alike(lm: PreTrainedTokenizerBase, small: PreTrainedTokenizerBase) -> bool:
    """Whether both split a text with a bit of everything into the same ids."""
    ours, theirs = (t.encode(loading.PROBE, add_special_tokens=False) for t in (lm, small))
    return ours == theirs


def _shown(draft: Any) -> str:
    return repr(draft) if isinstance(draft, (str, Path)) else f"a {type(draft).__name__}"
