"""The engine of a pair of models, made once and let go with either of them.

An engine holds its models, so it is given copies of the outermost objects, which share every weight
and every submodule with the caller's: nothing in the engine keeps the caller's objects alive.
"""

import copy
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from args_fast.decoder import ArgsDecoder
from args_fast.errors import ConfigError
from args_fast.options import EngineOptions
from args_fast.rewards import load

_ENGINES: dict[tuple[Any, ...], tuple[Any, ArgsDecoder]] = {}
_LOCK = threading.Lock()


def engine_of(
    lm: PreTrainedModel,
    reward: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    options: EngineOptions,
    *,
    processes_logits: bool,
) -> ArgsDecoder:
    """The decoder of a pair, with an engine of its own. A pair has one at a time: other options
    replace it.

    Args:
        lm: the language model.
        reward: as for ``ArgsDecoder``, or the path or hub id of one.
        tokenizer: the language model's, for rewards that read text.
        options: of the engine.
        processes_logits: whether requests will have ``process_logits``.

    Raises:
        ConfigError: the language model is in training mode.
        ArgsError: as ``ArgsDecoder``.
    """
    if lm.training:
        raise ConfigError("the language model is in training mode; call lm.eval() first")
    named = reward if isinstance(reward, Mapping) else {"": reward}
    objects = [lm, *(value for value in named.values() if not isinstance(value, str | Path))]
    names = tuple((name, _identity(value)) for name, value in named.items())
    pair = (os.getpid(), id(lm), names)  # an engine does not survive a fork
    # Without graphs and bursts, which the CPU does not have, one engine does for both.
    one_step = processes_logits or lm.device.type == "cpu"
    wanted = (None if tokenizer is None else id(tokenizer), options, one_step)
    with _LOCK:
        known = _ENGINES.get(pair)
        if known is None or known[0] != wanted:
            _ENGINES.pop(pair, None)
            known = wanted, _make(lm, reward, tokenizer, options, one_step=one_step)
            _ENGINES[pair] = known
            for value in objects:
                weakref.finalize(value, _ENGINES.pop, pair, None).atexit = False
        return known[1]


def _make(
    lm: PreTrainedModel,
    reward: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    options: EngineOptions,
    *,
    one_step: bool,
) -> ArgsDecoder:
    shell = copy.copy(lm)
    shell.generation_config = GenerationConfig()  # its rules come with each call
    several = isinstance(reward, Mapping)
    named = {
        name: load(value, tokenizer=tokenizer, device=lm.device, dtype=lm.dtype)
        if isinstance(value, str | Path)
        else copy.copy(value)
        for name, value in (reward.items() if several else [("", reward)])
    }
    return ArgsDecoder(
        shell,
        named if several else named[""],
        tokenizer=tokenizer,
        logits_processor=LogitsProcessorList([_unchanged]) if one_step else None,
        **vars(options),
    )


def _unchanged(_: Any, scores: Any) -> Any:
    return scores


def _identity(value: Any) -> Any:
    return str(value) if isinstance(value, str | Path) else id(value)
