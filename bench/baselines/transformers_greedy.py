"""Greedy decoding by ``transformers.generate``: as it comes, and as fast as it gets."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench.baselines.engine import Ids, own_layers
from args_fast.bench.baselines.k_copies import cached

# Each model's static cache, with its (batch, prompt, length), kept between calls: a compiled step
# that is replayed as a CUDA graph is bound to the memory that it was recorded with.
_kept: WeakKeyDictionary[PreTrainedModel, tuple[tuple[int, int, int], StaticCache]] = (
    WeakKeyDictionary()
)


def dynamic_greedy(
    pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig, **options: Any
) -> list[Ids]:
    """With its dynamic cache, which is the default."""
    text = torch.tensor(prompts, device=pair.device)
    lm: Any = own_layers(pair.language_model)
    out = lm.generate(
        text,
        attention_mask=torch.ones_like(text),
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=None,  # nothing ends early
        **options,
    )
    return out[:, text.shape[1] :].tolist()


def static_greedy(pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig) -> list[Ids]:
    """With a static cache and torch.compile (as a CUDA graph where there is one): the fastest
    greedy decoding that transformers has. The first call of a shape compiles. Call it with the most
    tokens first: the cache is as long as that and serves shorter calls."""
    compiled: Any = CompileConfig(dynamic=False, mode="reduce-overhead")
    compiled._compile_all_devices = True  # on the CPU as well
    lm = own_layers(pair.language_model)
    cache = _static_cache(lm, len(prompts), len(prompts[0]), config.max_new_tokens)
    return dynamic_greedy(pair, prompts, config, compile_config=compiled, **cached(lm, cache))


def _static_cache(lm: PreTrainedModel, batch: int, prompt: int, new_tokens: int) -> StaticCache:
    """An empty one; that of the last call where it fits."""
    needed = prompt + new_tokens
    if lm in _kept:
        (*shape, length), cache = _kept[lm]
        if shape == [batch, prompt] and needed <= length:
            cache.reset()
            return cache
    cache = StaticCache(config=lm.config, max_cache_len=needed)
    _kept[lm] = ((batch, prompt, needed), cache)
    return cache
