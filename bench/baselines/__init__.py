"""Everything that is measured, as functions of one kind.

    decode(pair, prompts, new_tokens, k, w) -> the new tokens of each prompt

``prompts`` are lists of ids of one length (a batch); nothing ends early, so every prompt gets
``new_tokens`` ids. The greedy ones use neither k nor w. In float32 all greedy decoders give the
same tokens, and all ARGS decoders do: tests/bench/test_baselines.py.
"""

from collections.abc import Callable, Sequence

from args_fast import ArgsDecoder
from args_fast.bench.baselines.engine import args, greedy
from args_fast.bench.baselines.k_copies import k_copies
from args_fast.bench.baselines.naive import naive
from args_fast.bench.baselines.transformers_greedy import dynamic_greedy, static_greedy

Ids = list[int]
Decode = Callable[[ArgsDecoder, Sequence[Ids], int, int, float], list[Ids]]

ARGS = "args-fast ARGS"
GREEDY = "args-fast greedy"
TRANSFORMERS = "transformers greedy"
STATIC = "transformers greedy, static + compile"
K_COPIES = "k-copies cache"
NAIVE = "naive, no cache"

METHODS: dict[str, Decode] = {
    ARGS: args,
    GREEDY: greedy,
    TRANSFORMERS: dynamic_greedy,
    STATIC: static_greedy,
    K_COPIES: k_copies,
    NAIVE: naive,
}
GREEDIES = (TRANSFORMERS, STATIC, GREEDY)
