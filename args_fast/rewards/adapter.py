"""A LoRA adapter with a reward head, merged into a model of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from args_fast.errors import LoadError
from args_fast.models import adapters, loading, pretrained
from args_fast.rewards.classifier import Classifier, Template
from args_fast.rewards.heads import HeadLike, Labels


class Adapter(Classifier):
    """A reward model that is a LoRA adapter: a ``Classifier`` of the adapter merged into its base.

    Args:
        adapter: the folder that peft saved, with the head among its weights (modules_to_save) or
            in ``value_head.safetensors`` next to them; a PeftModel; or a model that transformers
            has put an adapter into. An object is copied before it is merged.
        tokenizer: as for ``Classifier``; of a folder, the one saved in it or with its base.
        name, template, closing_ids, head, labels, known: as for ``Classifier``.
        device, dtype: of a folder's model: "auto", "cpu", "cuda" ..., "float32" ...; as for
            ``ArgsDecoder.from_pretrained``.
        base: of a folder's adapter, in place of the base model that it names.
        trust_remote_code: run code that comes with the base of a folder's adapter.

    Raises:
        RewardHeadError: no head was trained; else as for ``Classifier``.
        LoadError: the folder or its base cannot be loaded, the object has no adapter, or peft is
            not installed.
    """

    def __init__(
        self,
        adapter: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str | None = None,
        template: Template = "auto",
        closing_ids: Sequence[int] | None = None,
        head: HeadLike = None,
        labels: Labels = None,
        known: torch.Tensor | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        base: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        options = {"trust_remote_code": trust_remote_code}
        if isinstance(adapter, (str, Path)):
            name = name or Path(adapter).name
            merged = load_merged(adapter, device, dtype, base=base, **options)
            tokenizer = tokenizer or loading.load_tokenizer(adapter, base=base, **options)
        elif isinstance(adapter, adapters.Merged):
            merged = adapter
        elif adapters.has_adapter(adapter):
            merged = adapters.Merged(adapters.merged_copy(adapter), None)
        else:
            raise LoadError(
                f"{type(adapter).__name__} has no adapter; use rewards.Classifier(model) for a "
                "model, or the folder that peft saved"
            )
        super().__init__(
            merged.model,
            tokenizer,
            name=name,
            template=template,
            closing_ids=closing_ids,
            head=merged.head if head is None else head,
            labels=labels,
            known=known,
        )


def load_merged(
    path: str | Path,
    device: str | torch.device,
    dtype: str | torch.dtype,
    *,
    base: str | Path | None = None,
    **options: Any,
) -> adapters.Merged:
    """The model of an adapter's folder, on its device. Raises RewardHeadError, LoadError."""
    folder = Path(path).expanduser()
    if not adapters.is_folder(folder):
        raise LoadError(
            f"{path} is not a folder with an adapter_config.json; rewards.load takes models of "
            "other kinds"
        )
    place = loading.resolve_device(device)
    kind = loading.resolve_dtype(dtype, place)
    merged = adapters.load_reward_model(folder, kind, options, base=base)
    pretrained.finish(merged.model, place, f"the reward model {path}")
    return merged
