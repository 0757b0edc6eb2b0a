"""ARGS as its published code caches: the reward model's cache is k copies of one prefix.

Rewritten for current transformers. The language model has a cache of its own. The reward model
reads the prompt k times, once after each first candidate; after each choice the winner's copy is
kept and repeated k times, so a step copies, stores and reads the whole prefix k times.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench.baselines.engine import Ids, own_layers


@torch.inference_mode()
def k_copies(pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig) -> list[Ids]:
    lm, rm, k = own_layers(pair.language_model), own_layers(pair.reward_model), config.k
    text = torch.tensor(prompts, device=pair.device)  # [B, t]
    B = len(prompts)
    lm_cache, rm_cache = (DynamicCache(config=model.config) for model in (lm, rm))
    first = torch.arange(B, device=pair.device) * k
    unread = text
    for _ in range(config.max_new_tokens):
        logits = lm(unread, use_cache=True, **cached(lm, lm_cache)).logits[:, -1]
        logprobs, ids = logits.float().log_softmax(dim=1).topk(k, dim=1)  # [B, k]
        if rm_cache.get_seq_length() == 0:
            rows = torch.cat([text.repeat_interleave(k, dim=0), ids.view(-1, 1)], dim=1)
        else:
            rows = ids.view(-1, 1)
        scores = logprobs + config.w * _rewards(rm, rows, rm_cache).view(B, k)
        branch = scores.argmax(dim=1)
        rm_cache.batch_select_indices((first + branch).repeat_interleave(k))
        unread = ids.gather(1, branch[:, None])
        text = torch.cat([text, unread], dim=1)
    return text[:, len(prompts[0]) :].tolist()


def _rewards(rm: PreTrainedModel, rows: Tensor, cache: DynamicCache) -> Tensor:
    hidden = rm.base_model(rows, use_cache=True, **cached(rm.base_model, cache)).last_hidden_state
    head: Any = rm.score
    return head(hidden[:, -1]).float()[:, 0]


def cached(model: nn.Module, cache: object) -> dict[str, object]:
    """The keyword that a cache goes by, which changes within transformers 5."""
    known = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}
