"""The slowdown that the matrix products alone would have, beside the slowdown that there is.

Every linear layer of both models, each with its own weights so that they come from memory as in a
decode, is multiplied with 1 row (the language model, and its head) and with k rows (the reward
model). The floor is (products of the language model at M = 1 + products of the reward model at
M = k) over the first of the two; no decode can be closer to greedy than that with these products.
Rounds of products and of decodes alternate in one process, so that a change of the machine's
speed meets all of them.

    python -m args_fast.bench.matmul_floor --lm opt-125m --rm opt-125m --k 10
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.utils import logging

from args_fast import ArgsDecoder
from args_fast.bench import baselines, models, roofline
from args_fast.bench.cases import Case
from args_fast.bench.runner import prompts_of
from args_fast.bench.timing import environment


def products(model: nn.Module, rows: int) -> Callable[[], None]:
    """All matrix products of a forward pass of ``rows`` rows, in the order of the layers, and
    nothing else."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inputs: dict[int, Tensor] = {}
    for layer in layers:
        weight = layer.weight
        inputs.setdefault(
            layer.in_features,
            torch.randn(rows, layer.in_features, dtype=weight.dtype, device=weight.device),
        )

    @torch.inference_mode()
    def multiply() -> None:
        for layer in layers:
            linear(inputs[layer.in_features], layer.weight, layer.bias)

    return multiply


def compare(pair: ArgsDecoder, case: Case, rounds: int) -> dict[str, float]:
    """Median seconds of every part, and the slowdown over its floor.

    Returns:
        lm_products, rm_products: of one step; greedy, args, transformers: a step of each decode;
        floor, slowdown (against our own greedy), slowdown_transformers; ratio: slowdown / floor.
    """
    prompts = prompts_of(case)
    lm, rm = products(pair.language_model, 1), products(pair.reward_model, case.k)
    decoders = {
        "greedy": baselines.GREEDY,
        "args": baselines.ARGS,
        "transformers": baselines.TRANSFORMERS,
    }

    def decode(name: str, new_tokens: int) -> Callable[[], object]:
        method = baselines.METHODS[decoders[name]]
        return lambda: method(pair, prompts, new_tokens, case.k, case.w)

    steps = case.new_tokens - 1
    calls: dict[str, tuple[Callable[[], object], ...]] = {
        "lm_products": (_repeat(lm, steps),),
        "rm_products": (_repeat(rm, steps),),
    }
    calls |= {name: (decode(name, case.new_tokens), decode(name, 1)) for name in decoders}
    for parts in calls.values():
        for call in parts:
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, parts in calls.items():
            whole, *first = [_seconds(call, pair.device) for call in parts]
            times[name].append((whole - sum(first)) / steps)
    found = {name: statistics.median(values) for name, values in times.items()}
    floor = 1 + found["rm_products"] / found["lm_products"]
    slowdown = found["args"] / found["greedy"]
    return found | {
        "floor": floor,
        "slowdown": slowdown,
        "slowdown_transformers": found["args"] / found["transformers"],
        "ratio": slowdown / floor,
    }


def _repeat(call: Callable[[], None], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            call()

    return repeated


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m args_fast.bench.matmul_floor",
        description="The slowdown beside the floor set by the bare matrix products; prints JSON.",
    )
    parser.add_argument("--lm", default="opt-125m", choices=models.CONFIGS, metavar="NAME")
    parser.add_argument("--rm", default="opt-125m", choices=models.CONFIGS, metavar="NAME")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=roofline.DTYPES)
    parser.add_argument("--device", default="cpu")
    at = parser.parse_args(arguments)
    logging.set_verbosity_error()
    device = torch.device(at.device)
    pair = models.random_pair(at.lm, at.rm, device=device, dtype=roofline.DTYPES[at.dtype])
    case = Case(at.lm, at.rm, k=at.k, prompt=at.prompt, dtype=at.dtype, new_tokens=at.new_tokens)
    found = compare(pair, case, at.rounds)
    print(json.dumps({"case": case.key, **found, "environment": environment(device)}, indent=1))


if __name__ == "__main__":
    main()
