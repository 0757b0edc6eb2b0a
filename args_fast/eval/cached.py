"""A language model with a cache that the caller holds: what the baselines' own loops run on."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

Enough = Callable[[int], bool]  # called with each new token; True ends the response


class CachedModel:
    """Passes over a growing text, each over its new tokens alone.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.cache = DynamicCache(config=model.config)
        self._model = model
        # transformers 5.24 calls it "cache"; a model that hides its arguments behind **kwargs is
        # given the older name.
        known = inspect.signature(model.forward).parameters
        self._argument = "cache" if "cache" in known else "past_key_values"

    def __call__(self, ids: Tensor, **options: Any) -> Any:
        """The model's output for new tokens [B, t] after those in the cache."""
        return self._model(
            ids.to(self._model.device), use_cache=True, **{self._argument: self.cache}, **options
        )
