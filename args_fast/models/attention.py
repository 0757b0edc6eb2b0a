"""The attention that Hugging Face models call while the engine drives them.

A model passes the queries, keys and values of its new rows; the context that the engine handed to
the forward pass stores them and answers. The models build no masks and hold no cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

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
    """The function behind ``AttentionInterface`` (transformers' calling convention)."""
    context: AttentionContext = kwargs[CONTEXT]
    options = AttentionOptions(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        sliding_window=sliding_window or 0,
        softcap=softcap or 0.0,
        sinks=s_aux,
    )
    layer: int = module.layer_idx  # type: ignore[assignment]
    return context.attend(layer, query, key, value, options), None


AttentionInterface.register(NAME, attention)


@contextmanager
def driven(model: PreTrainedModel) -> Iterator[None]:
    """Route the model's attention to the engine, only for the duration of one forward pass: outside
    it the model is the user's and generates as it always did."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
