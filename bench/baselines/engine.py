"""Ours: the reference without a cache; the engine's ARGS, greedy decoding as its k = 1, and both
with options of the decoder's."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from args_fast import ArgsDecoder, DecodingConfig, reference
from args_fast.kvcache.storage import PAGE_SIZE, pages_for
from args_fast.models import placement
from args_fast.models.compact import in_float32

Ids = list[int]
Decode = Callable[[ArgsDecoder, Sequence[Ids], DecodingConfig], list[Ids]]

# Copies of models, kept as long as these.
_own_layers: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()
# The further decoders of each pair, by their options, with the tokens that fit into their caches.
_variants: WeakKeyDictionary[ArgsDecoder, dict[str, tuple[int, ArgsDecoder]]] = WeakKeyDictionary()


def own_layers(model: PreTrainedModel) -> PreTrainedModel:
    """The model with torch's own layers, for what is compared with our way of running it."""
    if model not in _own_layers:
        copied = in_float32(model)
        if copied is model:
            return model
        placement.gather(copied)
        _own_layers[model] = copied
    return _own_layers[model]


def naive(pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig) -> list[Ids]:
    models = own_layers(pair.language_model), own_layers(pair.reward_model)
    return [reference.decode(*models, prompt, config).token_ids for prompt in prompts]


def args(pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig) -> list[Ids]:
    results = pair.generate(list(prompts), config)
    require_what_was_asked(pair)
    return [result.token_ids for result in results]


def require_what_was_asked(pair: ArgsDecoder) -> None:
    """Raises RuntimeError where steps ran in another way, slower than what was asked for: not
    captured as graphs, or through the modules of a model whose layers were to be fused."""
    rewards = pair.engine.panel.rewards.values()
    backbones = (getattr(reward, "backbone", None) for reward in rewards)
    for backbone in filter(None, (pair.engine.lm, *backbones)):
        if backbone.fused is True and backbone.fused_layers() is None:
            reason = backbone.refusal or "see the warnings"
            raise RuntimeError(f"the layers are not fused: {reason}")
    for runner in pair.engine.bursts.runners.values():
        if runner.graphs.failure is not None:
            raise RuntimeError(f"a step was not captured as a graph: {runner.graphs.failure}")


def greedy(pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig) -> list[Ids]:
    return args(pair, prompts, replace(config, k=1, w=0.0))


def with_options(decode: Decode, **options: Any) -> Decode:
    """``args`` or ``greedy`` by a decoder over the same models that is made with these options and
    kept as long as the pair. Call it with the most tokens first: the cache is as large as that."""

    def decode_with_options(
        pair: ArgsDecoder, prompts: Sequence[Ids], config: DecodingConfig
    ) -> list[Ids]:
        variants = _variants.setdefault(pair, {})
        tokens = len(prompts) * (len(prompts[0]) + config.max_new_tokens)
        room, decoder = variants.pop(repr(options), (0, None))
        if decoder is None or room < tokens:
            room, decoder = tokens, None  # the old cache goes before there is another one
            decoder = variant(pair, prompts, config.max_new_tokens, **options)
        variants[repr(options)] = room, decoder
        return decode(decoder, prompts, config)

    return decode_with_options


def variant(
    pair: ArgsDecoder,
    prompts: Sequence[Ids],
    new_tokens: int,
    reward: Callable[[ArgsDecoder], Any] | None = None,
    **options: Any,
) -> ArgsDecoder:
    """Another decoder over the same models, or with another reward that is made of the pair, with a
    cache for these prompts."""
    per_token = -(-pair.cache.bytes // pair.cache.tokens)
    room = cache_bytes(per_token, batch=len(prompts), tokens=len(prompts[0]) + new_tokens)
    rm = pair.reward_model if reward is None else reward(pair)
    return ArgsDecoder(pair.language_model, rm, cache_bytes=room, **options)


def adapter(pair: ArgsDecoder) -> Any:
    """An adapter and a head on the language model: one pass over its weights gives both."""
    lm = pair.language_model
    config = deepcopy(lm.config)
    config.num_labels = 1
    with torch.device("meta"):
        rm = AutoModelForSequenceClassification.from_config(config, dtype=lm.dtype)
    setattr(rm, rm.base_model_prefix, deepcopy(own_layers(lm).base_model))
    rm.score = torch.nn.Linear(config.hidden_size, 1, bias=False, device=lm.device, dtype=lm.dtype)
    return lora(rm)


def lora(rm: Any) -> Any:
    """A reward model with terms of rank 8 on every linear layer, as peft begins: they add 0."""
    from peft import LoraConfig, get_peft_model

    from args_fast.rewards import Adapter

    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear")
    return Adapter(get_peft_model(rm.eval(), config).eval())


def cache_bytes(per_token: int, *, batch: int, tokens: int) -> int:
    """Bytes of caches for ``batch`` prompts of so many tokens, new ones included, with two pages to
    spare for each, so that none has to wait for another. ``per_token``: bytes, of both models."""
    pages = batch * (pages_for(tokens) + 2) + 1
    return per_token * PAGE_SIZE * pages
