"""The attention that Hugging Face models call while the engine drives them.

A model passes the queries, keys and values of its new rows; the context that the engine handed to
the forward pass stores them and answers. The models build no masks and hold no cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from args_fast.errors import UnsupportedModelError

NAME = "args_fast"
CONTEXT = "args_fast_context"  # the keyword argument that travels through the model's forward


@dataclass(frozen=True)
class AttentionOptions:
    """What a layer asks of its attention in addition to the scaled dot product.

    scale: factor on the dot products; sliding_window: tokens seen, 0 for all; softcap: bound of the
    scores, 0.0 for none; sinks: [Hq], one more logit per head in the denominator, or None.
    """

    scale: float
    sliding_window: int
    softcap: float
    sinks: Tensor | None


class AttentionContext(Protocol):
    """Stores the new rows of one layer and attends: query [B, Hq, N, D], key and value
    [B, Hkv, N, D] -> [B, N, Hq, D]."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor: ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention that is registered with ``AttentionInterface`` (transformers' calling
    convention).

    Raises:
        UnsupportedModelError: the layer brings a mask of its own, or is not causal. The engine
            decides which rows see each other, so what else the mask says would be lost.
    """
    context: AttentionContext = kwargs[CONTEXT]
    if attention_mask is not None or kwargs.get("is_causal") is False:
        raise UnsupportedModelError(_own_mask(module, attention_mask))
    options = AttentionOptions(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        sliding_window=sliding_window or 0,
        softcap=softcap or 0.0,
        sinks=s_aux,
    )
    layer: int = module.layer_idx  # type: ignore[assignment]
    return context.attend(layer, query, key, value, options), None


AttentionInterface.register(NAME, attention)


def _own_mask(module: nn.Module, mask: Tensor | None) -> str:
    quirk = (
        "is not causal"
        if mask is None
        else f"makes an attention mask of its own (of shape {tuple(mask.shape)})"
    )
    return (
        f"an attention layer of the model ({type(module).__name__}) {quirk}, which the engine "
        "cannot follow; use a model with causal attention, or args_fast.reference.decode."
    )


@contextmanager
def driven(model: PreTrainedModel) -> Iterator[None]:
    """Route the model's attention to the engine, only for the duration of one forward pass: outside
    it the model is the user's and generates as it always did. The parts of a multimodal model may
    each have an attention of their own, and get it back."""
    # A base model that is shared with another model keeps that one's configuration.
    base: PreTrainedModel = model.base_model  # type: ignore[assignment]
    parts = [*_configs(model.config), *_configs(base.config)]
    before = [(part, part._attn_implementation) for part in {id(p): p for p in parts}.values()]
    try:
        # Not through the public setter, which would hand a part's choice on to its own parts.
        for part, _ in before:
            part._attn_implementation_internal = NAME
        yield
    finally:
        for part, implementation in before:
            part._attn_implementation_internal = implementation


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield from _configs(part)
