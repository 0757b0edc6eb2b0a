"""Where the time of a decode step goes: matrix products, our ops, everything else.

    python -m args_fast.bench.profile_step --lm opt-125m --rm opt-125m --prompt 512

Decodes one prompt under torch.profiler in rounds, and writes the share of each kind of work to
bench/results/<device>/step-profile-<date>-<commit>.json and .md: of the step's wall time, median
and quartiles over the rounds. On the CPU an op counts by its own time; on CUDA by its kernels',
from steps without CUDA graphs, since a replayed graph has kernels and no ops. The rest is the
host's: Python, dispatch, launches, and the profiler's own work.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench import models, results, slowdown
from args_fast.bench.baselines.engine import variant
from args_fast.bench.cases import Case
from args_fast.bench.sweep import build
from args_fast.bench.timing import Sample, describe, summary

HOST, PRODUCTS, OTHER = "host: Python and dispatch", "matrix products", "other torch ops"
OURS = ("args_fast", "args_fast_cpp")  # namespaces of our ops
KINDS = dict.fromkeys(("addmm", "mm", "bmm", "baddbmm", "linear", "matmul"), PRODUCTS)
KINDS |= dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), "norms")
KINDS |= dict.fromkeys(("copy_", "clone", "contiguous", "_to_copy"), "copies")


def shares(ops: Iterable[Any], wall: float, device: str) -> dict[str, float]:
    """Kind of work -> share of ``wall`` seconds, of the profiler's averages by op."""
    spent: dict[str, float] = defaultdict(float)
    for op in ops:
        space, _, name = op.key.partition("::")
        if name:  # ranges and calls of the driver are not work
            kind = KINDS.get(name, name if space in OURS else OTHER)
            microseconds = op.self_device_time_total if device == "cuda" else op.self_cpu_time_total
            spent[kind] += microseconds * 1e-6 / wall
    spent[HOST] = max(0.0, 1 - sum(spent.values()))
    return dict(spent)


def profile_steps(
    pair: ArgsDecoder, case: Case, *, steps: int, rounds: int
) -> tuple[Sample, dict[str, Sample]]:
    """The seconds of a step without the profiler, and the shares of each kind of work."""
    prompts = case.prompts(pair.language_model.config.get_text_config().vocab_size)
    activities = [ProfilerActivity.CPU]
    if pair.device.type == "cuda":
        pair = variant(pair, prompts, case.new_tokens, cuda_graphs=False)
        activities.append(ProfilerActivity.CUDA)
    config = DecodingConfig(k=case.k, w=case.w, max_new_tokens=case.new_tokens, eos_token_ids=[])
    times: list[float] = []
    profiles: list[dict[str, float]] = []
    decoding: Any = pair.stream(prompts[0], config)
    with closing(decoding) as stream:
        next(stream), next(stream)  # the prompt, and a step to warm up
        for _ in range(rounds):
            for _ in range(steps):
                began = time.perf_counter()
                next(stream)
                times.append(time.perf_counter() - began)
            with profile(activities=activities) as profiler:
                began = time.perf_counter()
                for _ in range(steps):
                    next(stream)
                wall = time.perf_counter() - began
            profiles.append(shares(profiler.key_averages(), wall, pair.device.type))
    kinds = sorted(set().union(*profiles), key=lambda kind: -profiles[0].get(kind, 0))
    spread = {kind: summary([found.get(kind, 0) for found in profiles]) for kind in kinds}
    return summary(times), spread


def markdown(document: dict[str, Any]) -> str:
    lines = ["# Where the time of a decode step goes", "", describe(document["environment"]) + "."]
    for name, record in document["steps"].items():
        step = {part: record["step"][part] * 1e3 for part in ("median", "low", "high")}
        lines.append(
            f"\n## {name}\n\nA step takes {step['median']:.1f} ms without the profiler (quartiles "
            f"{step['low']:.1f}-{step['high']:.1f}, {record['step']['repeats']} steps).\n"
        )
        rows = [["work", "share", "quartiles"]]
        for work, share in record["shares"].items():
            spread = f"{share['low']:.1%}-{share['high']:.1%}"
            rows.append([work, f"{share['median']:.1%}", spread])
        lines.append(slowdown.as_markdown(rows))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lm", default="opt-125m", choices=models.CONFIGS, metavar="SHAPE")
    parser.add_argument("--rm", default="opt-125m", choices=models.CONFIGS, metavar="SHAPE")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=8, help="per round (8)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, help="folder for results (bench/results)")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    device = torch.device(options.device)
    case = Case(
        options.lm,
        options.rm,
        options.k,
        prompt=options.prompt,
        dtype=options.dtype,
        new_tokens=3 + 2 * options.steps * options.rounds,
    )
    pair = build(case, device)
    step, kinds = profile_steps(pair, case, steps=options.steps, rounds=options.rounds)
    folder = results.results_folder(device, options.results)
    file, document = results.begin(folder, "step-profile", device, steps={})
    document["steps"][case.name] = {
        "step": step.as_json(),
        "shares": {kind: share.as_json() for kind, share in kinds.items()},
    }
    results.write(file, document, markdown(document))
    print(markdown(document), file.with_suffix(".md"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
