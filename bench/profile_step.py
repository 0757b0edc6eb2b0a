"""Where the time of a step goes: matrix products, our ops, everything else.

    python -m args_fast.bench.profile_step

Decodes with a random OPT-125M pair (float32, k = 10, prompt 512) on the CPU under torch.profiler,
in rounds, and writes the share of each kind of work to step-profile.json and step-profile.md in
bench/results/<device>/. Shares are of the step's wall time, each round by itself: median and range
over the rounds. What no op accounts for is Python, dispatch, and the profiler's own work.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd import profiler_util
from torch.profiler import ProfilerActivity, profile, record_function

from args_fast import DecodingConfig
from args_fast.bench import parts
from args_fast.bench.models import random_pair
from args_fast.bench.timing import device_name, environment, slug

RESULTS = Path(__file__).resolve().parent / "results"
REST = "Python and dispatch"
STEP = "one step"


def shares(events: list[profiler_util.FunctionEvent]) -> dict[str, float]:
    """Kind of work -> share of the steps' time."""
    whole = sum(event.cpu_time_total for event in events if event.name == STEP) * 1e-6
    found: dict[str, float] = defaultdict(float)
    for (_, kind), seconds in parts.spent(events).items():
        found[kind] += seconds / whole
    found[REST] = 1 - sum(found.values())
    return dict(found)


def rounds(*, prompt: int, k: int, steps: int, count: int, size: str) -> tuple[list, list]:
    """Shares of each round, and seconds of single steps without the profiler."""
    pair = random_pair(size, size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50000, (prompt,), generator=generator).tolist()
    config = DecodingConfig(
        k=k, w=1.5, max_new_tokens=2 + 2 * steps * count, eos_token_ids=[], stop=()
    )
    stream = pair.stream(ids, config)
    next(stream), next(stream)  # the prompt, and a step to warm up
    found, seconds = [], []
    for _ in range(count):
        for _ in range(steps):
            began = time.perf_counter()
            next(stream)
            seconds.append(time.perf_counter() - began)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            for _ in range(steps):
                with record_function(STEP):
                    next(stream)
        found.append(shares(profiler.events()))
    return found, seconds


def summary(found: list[dict[str, float]], seconds: list[float]) -> dict[str, Any]:
    kinds = sorted({kind for one in found for kind in one}, key=lambda kind: -found[0].get(kind, 0))
    ours = {"topk_logprobs", "branch_attention", "select", "commit", "select_commit"}

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "low": min(values), "high": max(values)}

    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "step_seconds": {"median": median, "low": low, "high": high, "steps": len(seconds)},
        "shares": {kind: spread([one.get(kind, 0.0) for one in found]) for kind in kinds},
        "our ops": spread([sum(one.get(op, 0.0) for op in ours) for one in found]),
        "our ops and all copies": spread(
            [sum(one.get(op, 0.0) for op in (*ours, "copies")) for one in found]
        ),
        "every op but the matrix products": spread(
            [1 - one.get(parts.PRODUCT, 0.0) - one.get(REST, 0.0) for one in found]
        ),
        "not a matrix product": spread([1 - one.get(parts.PRODUCT, 0.0) for one in found]),
        "rounds": len(found),
    }


def table(document: dict[str, Any]) -> str:
    facts, setting = document["environment"], document["setting"]
    step = document["step_seconds"]
    versions = ", ".join(f"{n} {v}" for n, v in facts["versions"].items() if v)
    lines = [
        f"# A step on {facts['device']}",
        "",
        f"{setting['pair']}, float32, k = {setting['k']}, prompt {setting['prompt']}, batch 1,",
        f"random weights. {versions}; {facts['threads']} threads; commit {facts['commit']}; "
        f"{facts['date']}.",
        "",
        f"A step takes {step['median'] * 1e3:.1f} ms without the profiler (quartiles "
        f"{step['low'] * 1e3:.1f}-{step['high'] * 1e3:.1f}, {step['steps']} steps). Shares are of",
        f"the step under the profiler: median and range of {document['rounds']} rounds.",
        "",
        "| work | share | range |",
        "| --- | ---: | ---: |",
    ]

    def line(name: str, value: dict[str, float]) -> str:
        return f"| {name} | {value['median']:.1%} | {value['low']:.1%}-{value['high']:.1%} |"

    lines += [line(kind, value) for kind, value in document["shares"].items()]
    sums = ("our ops", "our ops and all copies", "every op but the matrix products")
    lines += [line(f"**{name}**", document[name]) for name in (*sums, "not a matrix product")]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="opt-125m", help="of both models (opt-125m)")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8, help="per round (8)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found, seconds = rounds(
        prompt=arguments.prompt,
        k=arguments.k,
        steps=arguments.steps,
        count=arguments.rounds,
        size=arguments.size,
    )
    device = torch.device("cpu")
    setting = {
        "pair": f"{arguments.size} + {arguments.size}",
        "prompt": arguments.prompt,
        "k": arguments.k,
    }
    document = {
        "environment": environment(device),
        "setting": setting,
        **summary(found, seconds),
    }
    folder = arguments.results / slug(device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step-profile.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "step-profile.md").write_text(table(document))
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
