"""Everything that is measured, as functions of one kind.

    decode(pair, prompts, config) -> the new tokens of each prompt

``prompts`` are lists of ids of one length (a batch); nothing ends early, so every prompt gets
``config.max_new_tokens`` ids. The greedy ones use neither k nor w. In float32 all greedy decoders
give the same tokens, and all ARGS decoders do: tests/bench/test_baselines.py.
"""

from args_fast.bench.baselines.engine import Decode, adapter, args, greedy, naive, with_options
from args_fast.bench.baselines.k_copies import k_copies
from args_fast.bench.baselines.transformers_greedy import dynamic_greedy, static_greedy

TRANSFORMERS = "transformers greedy"
STATIC = "transformers greedy, static + compile"
GREEDY = "args-fast greedy"
ARGS = "args-fast ARGS"
K_COPIES = "k-copies cache"
NAIVE = "naive, no cache"
# On the language model's own weights.
HEAD = "args-fast ARGS, Head"
ADAPTER = "args-fast ARGS, Adapter"
ADAPTER_FUSED = "args-fast ARGS, Adapter, fused layers"
ADAPTER_MODULES = "args-fast ARGS, Adapter, modules"
# Ours with options of the decoder's; GREEDY and ARGS leave all of them to the engine.
LOOKAHEAD = "args-fast ARGS, lookahead"
NO_LOOKAHEAD = "args-fast ARGS, no lookahead"
ARGS_COMPILED = "args-fast ARGS, compiled"
GREEDY_COMPILED = "args-fast greedy, compiled"
ARGS_FUSED = "args-fast ARGS, fused layers"
GREEDY_FUSED = "args-fast greedy, fused layers"
ARGS_MODULES = "args-fast ARGS, modules"
GREEDY_MODULES = "args-fast greedy, modules"

METHODS: dict[str, Decode] = {
    TRANSFORMERS: dynamic_greedy,
    STATIC: static_greedy,
    GREEDY: greedy,
    GREEDY_COMPILED: with_options(greedy, torch_compile=True),
    ARGS: args,
    ARGS_COMPILED: with_options(args, torch_compile=True),
    GREEDY_FUSED: with_options(greedy, fused_layers=True),
    ARGS_FUSED: with_options(args, fused_layers=True),
    GREEDY_MODULES: with_options(greedy, fused_layers=False),
    ARGS_MODULES: with_options(args, fused_layers=False),
    LOOKAHEAD: with_options(args, lookahead=True),
    NO_LOOKAHEAD: with_options(args, lookahead=False),
    ADAPTER: with_options(args, lookahead=True, reward=adapter),
    ADAPTER_FUSED: with_options(args, lookahead=True, reward=adapter, fused_layers=True),
    ADAPTER_MODULES: with_options(args, lookahead=True, reward=adapter, fused_layers=False),
    K_COPIES: k_copies,
    NAIVE: naive,
}
GREEDIES = (TRANSFORMERS, STATIC, GREEDY, GREEDY_COMPILED, GREEDY_MODULES, GREEDY_FUSED)
ADAPTERS = (ADAPTER, ADAPTER_MODULES, ADAPTER_FUSED)
COMPILING = (STATIC, GREEDY_COMPILED, ARGS_COMPILED)
THEIRS = (TRANSFORMERS, STATIC, K_COPIES, NAIVE)  # run the models' own layers
EAGER = (TRANSFORMERS, K_COPIES, NAIVE)  # nothing is compiled or captured: one warm-up is enough
# The two published ways of caching are slow: fewer new tokens, and fewer rounds, tell their steps.
MOST_TOKENS = {K_COPIES: 32, NAIVE: 4}
MOST_ROUNDS = {K_COPIES: 2, NAIVE: 1}


def warm_ups(method: str, device: str = "cpu") -> int:
    """Decodes before the first that counts. On CUDA a graph is captured when its shape comes the
    second time; what takes one round only takes none."""
    if MOST_ROUNDS.get(method) == 1:
        return 0
    return 2 if device == "cuda" and method not in EAGER else 1
