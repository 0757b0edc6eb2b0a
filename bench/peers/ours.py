"""transformers and args-fast: greedy decoding, and ARGS with three kinds of reward.

The reward model has the language model's own weights with a head drawn at random, so it is of the
same size; speed does not depend on what a head says. On the language model's own weights there are
that head, and where peft is installed an adapter of rank 8 on every linear layer that adds nothing:
in float32 all three give the same tokens.
"""

from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Decode

K, W = 10, 1.5


def load(model: str, dtype: str, threads: int, room: int) -> "dict[str, Decode]":
    """``model``: a transformers folder; ``room``: prompt and new tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from args_fast import ArgsDecoder, DecodingConfig, quantization
    from args_fast.bench import baselines
    from args_fast.bench.baselines.engine import lora
    from args_fast.rewards import Head

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=kind)
    rm = AutoModelForSequenceClassification.from_pretrained(model, dtype=kind, num_labels=1)
    scattered = ArgsDecoder(deepcopy(lm), deepcopy(rm))  # weights where transformers puts them
    adapted = deepcopy(rm)
    for loaded in (lm, rm):  # as ArgsDecoder.from_pretrained does
        quantization.prepare(loaded.eval(), None, head=loaded is lm)
    pair = ArgsDecoder(lm, rm)
    decoders = {baselines.TRANSFORMERS: scattered, baselines.GREEDY: pair, baselines.ARGS: pair}
    decoders[baselines.HEAD] = ArgsDecoder(lm, Head(deepcopy(rm.score)))
    if find_spec("peft"):
        decoders[baselines.ADAPTER] = ArgsDecoder(lm, lora(adapted))

    def decode(method: str, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        own = method in (baselines.HEAD, baselines.ADAPTER)
        way = baselines.args if own else baselines.METHODS[method]
        config = DecodingConfig(k=K, w=W, max_new_tokens=new_tokens, eos_token_ids=[])
        return way(decoders[method], prompts, config)

    return {name: partial(decode, name) for name in decoders}
