"""Everything that is measured, as functions of one kind.

    decode(pair, prompts, new_tokens, k, w) -> the new tokens of each prompt

``prompts`` are lists of ids of one length (a batch); nothing ends early, so every prompt gets
``new_tokens`` ids. The greedy ones use neither k nor w. In float32 all greedy decoders give the
same tokens, and all ARGS decoders do: tests/bench/test_baselines.py.
"""

from collections.abc import Callable, Sequence

from args_fast import ArgsDecoder
from args_fast.bench.baselines.engine import args, greedy, with_options
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

# Ours with options of the decoder's; ARGS itself leaves all of them to the engine.
LOOKAHEAD = "args-fast ARGS, lookahead"
NO_LOOKAHEAD = "args-fast ARGS, no lookahead"
ARGS_COMPILED = "args-fast ARGS, compiled"
GREEDY_COMPILED = "args-fast greedy, compiled"

METHODS: dict[str, Decode] = {
    ARGS: args,
    GREEDY: greedy,
    LOOKAHEAD: with_options(args, lookahead=True),
    NO_LOOKAHEAD: with_options(args, lookahead=False),
    # One behind the other: they share a decoder, and so what was compiled.
    ARGS_COMPILED: with_options(args, torch_compile=True),
    GREEDY_COMPILED: with_options(greedy, torch_compile=True),
    TRANSFORMERS: dynamic_greedy,
    STATIC: static_greedy,
    K_COPIES: k_copies,
    NAIVE: naive,
}
GREEDIES = (TRANSFORMERS, STATIC, GREEDY, GREEDY_COMPILED)
VARIANTS = (LOOKAHEAD, NO_LOOKAHEAD, ARGS_COMPILED, GREEDY_COMPILED)
COMPILED = (ARGS_COMPILED, GREEDY_COMPILED)
