"""The measurement that everything else in bench/ repeats in more detail. Read this first.

    python bench/first.py

One prompt, and two models of one size with random weights: speed does not depend on what weights
say. A step is what one more token takes, the prompt's time aside; the slowdown of ARGS is its step
over a step of greedy decoding. The methods take turns, so that a busy moment meets all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers.utils import logging

from args_fast import DecodingConfig
from args_fast.bench.models import random_pair
from args_fast.bench.traffic import step_bytes

SIZE, PROMPT, NEW_TOKENS, K, ROUNDS = "opt-125m", 128, 32, 10, 5


def main(size: str = SIZE, rounds: int = ROUNDS) -> dict[str, float]:
    logging.set_verbosity_error()
    pair = random_pair(size, size)
    lm, rm = pair.language_model, pair.reward_model
    prompt = torch.randint(5, 500, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def transformers(n: int) -> None:
        lm.generate(prompt, do_sample=False, max_new_tokens=n, eos_token_id=None)  # type: ignore[operator]

    def ours(k: int) -> Callable[[int], object]:
        return lambda n: pair.generate(
            prompt[0].tolist(), DecodingConfig(k=k, w=1.5, max_new_tokens=n, eos_token_ids=[])
        )

    def seconds(decode: Callable[[int], object], n: int) -> float:
        began = time.perf_counter()
        decode(n)
        return time.perf_counter() - began

    prefix = PROMPT + NEW_TOKENS // 2
    greedy_bytes, args_bytes = step_bytes(lm, prefix=prefix), step_bytes(lm, rm, prefix=prefix)
    methods: dict[str, tuple[Callable[[int], object], int]] = {
        "transformers greedy": (transformers, greedy_bytes),
        "args-fast greedy": (ours(1), greedy_bytes),
        f"args-fast ARGS, k = {K}": (ours(K), args_bytes),
    }
    steps: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds + 1):
        for name, (decode, _) in methods.items():
            whole, first = seconds(decode, NEW_TOKENS), seconds(decode, 1)
            steps[name].append((whole - first) / (NEW_TOKENS - 1))
    step = {name: statistics.median(times[1:]) for name, times in steps.items()}  # 0: warm-up
    base = step["transformers greedy"]
    for name, (_, moved) in methods.items():
        print(
            f"{name:24} {1 / step[name]:6.1f} tokens/s {moved / step[name] / 1e9:6.1f} GB/s "
            f"{step[name] / base:5.2f} x transformers greedy"
        )
    return step


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
