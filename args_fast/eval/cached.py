"""A language model over texts that it lengthens together: what the baselines' own loops run on."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

Enough = Callable[[int], bool]  # called with each new token of one text; True ends it


class CachedBatch:
    """Passes over the new tokens of a batch of texts, after a cache of those before.

    Prompts are padded on the left. The padding is masked, and positions count from a text's own
    first token. A text that has ended leaves the batch.

    Args:
        model: a causal language model of transformers.
        prompts: at least one id each.
        enough: for each prompt, what ends its text.

    Attributes:
        prompts: [B, t], the ids of the first pass.
        padding: [B, t] bool, where they are padding.
        tokens: the new tokens of every text, those that have ended included.
        running: numbers of the texts that are still in the batch, in its order.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[list[int]], enough: Sequence[Enough]
    ) -> None:
        longest = max(map(len, prompts))
        missing = [longest - len(prompt) for prompt in prompts]
        rows = [[p[0]] * n + list(p) for n, p in zip(missing, prompts, strict=True)]
        self.prompts = torch.tensor(rows, device=model.device)
        self.padding = torch.arange(longest) < torch.tensor(missing)[:, None]
        self.padding = self.padding.to(model.device)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.running = list(range(len(prompts)))
        self._cache = DynamicCache(config=model.config)
        self._mask = self.padding[:, :0].long()  # of what is in the cache
        self._model = model
        self._enough = enough
        self._known = inspect.signature(model.forward).parameters

    def __call__(self, ids: Tensor, **options: Any) -> Any:
        """The model's output for new tokens [rows, t], with the logits of the last one."""
        new = ~self.padding if ids is self.prompts else torch.ones_like(ids, dtype=torch.bool)
        self._mask = torch.cat([self._mask, new.long()], dim=1)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # transformers 5.24 calls it "cache"; a model that hides its arguments behind **kwargs is
        # given the older name.
        options["cache" if "cache" in self._known else "past_key_values"] = self._cache
        for name, value in (("position_ids", positions), ("logits_to_keep", 1)):
            if name in self._known:
                options[name] = value
        return self._model(ids, attention_mask=self._mask, use_cache=True, **options)

    def branch(self, k: int) -> None:
        """Have k rows of each text: row b * k + i is the i-th of text b."""
        self._cache.batch_repeat_interleave(k)
        self._mask = self._mask.repeat_interleave(k, dim=0)

    def commit(self, tokens: list[int], rows: Tensor) -> Tensor:
        """Lengthen each running text by one token.

        Args:
            tokens: of each running text.
            rows: [B], the row that stands for it from now on.

        Returns:
            Places in the batch before of the texts that have not ended.
        """
        places = []
        for place, (number, token) in enumerate(zip(self.running, tokens, strict=True)):
            self.tokens[number].append(token)
            if not self._enough[number](token):
                places.append(place)
        self.running = [self.running[place] for place in places]
        kept = torch.tensor(places, dtype=torch.long, device=self._mask.device)
        if places:
            self._cache.batch_select_indices(rows[kept])
            self._mask = self._mask[rows[kept]]
        return kept
