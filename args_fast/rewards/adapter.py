"""A LoRA adapter with a reward head: on the language model's own weights where it stands on them,
else merged into a model of its own."""

import copy
import logging
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import quantization
from args_fast.errors import LoadError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.pages import PagedText
from args_fast.kvcache.storage import GroupCache, PagedCache
from args_fast.models import adapters, loading, low_rank, pretrained, sharing
from args_fast.models.adapted import AdaptedBackbone, one_pass_agrees
from args_fast.models.backbone import Backbone
from args_fast.models.compact import weights_of
from args_fast.models.low_rank import LowRank, LowRankTerms
from args_fast.rewards.base import Judge
from args_fast.rewards.chains import JoinedJudge
from args_fast.rewards.classifier import Classifier, Template
from args_fast.rewards.heads import HeadLike, Labels

logger = logging.getLogger(__name__)


class Adapter(Classifier):
    """A reward model that is a LoRA adapter.

    If every tensor that the adapter stands on equals the language model's, which is compared when
    the decoder is made, there is one copy of the weights: the reward is the language model's layers
    with the adapter's terms added. Whoever changes these weights changes both. Else, and where the
    adapter is more than low-rank terms of linear layers (dora, trained norms or embeddings), it is
    merged into a model of its own; a line of the log says why.

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
            adapted = load_adapted(adapter, device, dtype, base=base, **options)
            tokenizer = tokenizer or loading.load_tokenizer(adapter, base=base, **options)
        elif isinstance(adapter, adapters.Adapted):
            adapted = adapter
        elif adapters.has_adapter(adapter):
            adapted = adapters.taken_apart(copy.deepcopy(adapter))
        else:
            raise LoadError(
                f"{type(adapter).__name__} has no adapter; use rewards.Classifier(model) for a "
                "model, or the folder that peft saved"
            )
        super().__init__(
            adapted.model,
            tokenizer,
            name=name,
            template=template,
            closing_ids=closing_ids,
            head=adapted.head if head is None else head,
            labels=labels,
            known=known,
        )
        self._terms = adapted.terms
        self._trained_biases = adapted.biases
        self._quantization: str | None = None
        self._joins = False
        if adapted.terms is None:
            logger.info("%s: merged into a model of its own: %s", self.name, adapted.reason)

    @property
    def shares_weights(self) -> bool:
        """Whether it stands on the language model's own weights, once a decoder is made of it."""
        return isinstance(self.backbone, AdaptedBackbone)

    @property
    def adapted(self) -> AdaptedBackbone:
        """Its layers, where ``shares_weights``."""
        assert isinstance(self.backbone, AdaptedBackbone)
        return self.backbone

    # ---- with the language model ---------------------------------------------------------------

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self._terms is not None:
            self._share_or_merge(lm, self._terms)
        super().attach(lm, tokenizer)
        self._joins = self.shares_weights and one_pass_agrees(lm, self.adapted)

    def _share_or_merge(self, lm: Backbone, terms: list[LowRank]) -> None:
        ours, base, kind = lm.model.base_model, self.model.base_model, self._quantization
        if base is not ours:
            quantize = None if kind is None else partial(quantization.quantize, kind=kind)
            biases = self._trained_biases
            why = sharing.difference(ours, base, biases=biases, quantize=quantize)
            if why is not None:
                return self._merge(why)
            if biases:  # from now on they are terms
                self._terms = terms = sharing.with_biases(terms, ours, base)
                self._trained_biases = False
            self._stand_on(lm.model)
            logger.info("%s: on the language model's own weights", self.name)
        self.backbone = AdaptedBackbone(self.model, LowRankTerms(terms, ours), fused=lm.fused)

    def _stand_on(self, lm: PreTrainedModel) -> None:
        """Let the language model's layers be those of the model, in place of its own."""
        setattr(self.model, self.model.base_model_prefix, lm.base_model)
        head: Any = lm.get_output_embeddings()
        if self.model.get_output_embeddings() is not None:
            self.model.set_output_embeddings(head)
        if lm.device.type == "cuda":
            torch.cuda.empty_cache()  # the caches get what the device says is free

    def _merge(self, why: str) -> None:
        logger.info("%s: merged into a model of its own: %s", self.name, why)
        if self.shares_weights:  # of another language model
            self.model = copy.deepcopy(self.model)
        low_rank.merge(self.model.base_model, self._terms or ())
        self._terms = None
        self.prepare(self._quantization)
        self.backbone = Backbone(self.model, "reward model")

    def prepare(self, kind: str | None) -> None:
        """As for ``Classifier``, once the adapter is merged; a language model of this kind of
        quantization can share its weights."""
        self._quantization = kind
        if self._terms is None:
            super().prepare(kind)

    def whole_model(self) -> PreTrainedModel:
        if self._terms is None:
            return self.model
        model = copy.deepcopy(self.model)
        low_rank.merge(model.base_model, self._terms)
        return model

    def weights(self) -> Iterable[Tensor]:
        own = self.backbone.terms.tensors() if isinstance(self.backbone, AdaptedBackbone) else []
        return [*weights_of(self.model), *own]

    # ---- in one pass with the language model ---------------------------------------------------

    @property
    def joins(self) -> bool:
        return self._joins and not self.own_ids and not self.closings

    @property
    def joined_share(self) -> float:
        layers = self.backbone.fused_layers(math.inf) if self.shares_weights else None
        return 1.0 if layers is None else layers.adapted_share

    @property
    def attention_per_token(self) -> float:
        fused = self.shares_weights and self.adapted.fused_layers() is not None
        on_cpu = fused and self.device.type == "cpu"
        return self.adapted.attention_per_token if on_cpu else 0.0

    def fill_with(
        self, lm: PagedCache, store: GroupCache, text: PagedText, start: int, end: int
    ) -> bool:
        if not self._joins:
            return False
        self.adapted.prefill_with(lm, store.cache, text.ids[start:end], text.pages, start)
        return True

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> Judge:
        if self.joins and store is not None:
            return JoinedJudge(self, memory, store)
        return super().judge(memory, store)


def load_adapted(
    path: str | Path,
    device: str | torch.device,
    dtype: str | torch.dtype,
    *,
    base: str | Path | None = None,
    **options: Any,
) -> adapters.Adapted:
    """The model of an adapter's folder, on its device. Raises RewardHeadError, LoadError."""
    folder = Path(path).expanduser()
    if not adapters.is_folder(folder):
        raise LoadError(
            f"{path} is not a folder with an adapter_config.json; rewards.load takes models of "
            "other kinds"
        )
    place = loading.resolve_device(device)
    kind = loading.resolve_dtype(dtype, place)
    adapted = adapters.load_reward_model(folder, kind, options, base=base)
    pretrained.finish(adapted.model, place, f"the reward model {path}")
    return adapted
