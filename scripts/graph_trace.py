"""What a replayed decode step does on a GPU: kernels, gaps between them, overlap of the streams.

    python scripts/graph_trace.py --lm opt-2.7b --rm opt-350m --prompt 128

Decodes one prompt, lets torch.profiler trace some steps once their graphs are captured, and writes
bench/results/<device>/graph-trace-<date>-<commit>.json and .md: each kernel's name, calls and
median time; the shares of the time in which no kernel runs, one runs, and kernels of two streams
run at once; and the gaps between a kernel and the next of its stream. torch's profiler leaves
clocks and caches as they are, which those of single kernels do not. --device cpu traces ops
instead; --rehearse does so with tiny models, to show that the program works.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench import cases, models, results, slowdown
from args_fast.bench.baselines.engine import require_what_was_asked, variant
from args_fast.bench.sweep import build
from args_fast.bench.timing import describe

KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
Span = tuple[float, float]
WARM_UP = 24  # tokens: three bursts, after which every graph is captured


def summarise(events: Iterable[dict[str, Any]], kinds: tuple[str, ...] = KERNELS) -> dict[str, Any]:
    """The figures of a Chrome trace's events, times in microseconds."""
    kept = [e for e in events if e.get("ph") == "X" and e.get("cat") in kinds]
    kept.sort(key=lambda event: event["ts"])
    by_name: dict[str, list[float]] = defaultdict(list)
    by_stream: dict[Any, list[Span]] = defaultdict(list)
    for event in kept:
        by_name[event["name"]].append(event["dur"])
        stream = event.get("args", {}).get("stream", event.get("tid"))
        by_stream[stream].append((event["ts"], event["ts"] + event["dur"]))
    kernels = [
        {"name": name, "calls": len(times), "median": statistics.median(times), "sum": sum(times)}
        for name, times in by_name.items()
    ]
    pairs = (pair for spans in by_stream.values() for pair in pairwise(spans))
    gaps = [max(0.0, after[0] - before[1]) for before, after in pairs]
    spans = sorted(span for spans in by_stream.values() for span in spans)
    whole = max((end for _, end in spans), default=1.0) - min(spans, default=(0.0, 0.0))[0]
    busy = _covered(spans)
    overlapping = sum(map(_covered, by_stream.values())) - busy  # of two streams
    return {
        "kernels": sorted(kernels, key=lambda kernel: -kernel["sum"]),
        "launches": len(kept),
        "gap_median": statistics.median(gaps) if gaps else 0.0,
        "streams": len(by_stream),
        "idle": 1 - busy / whole,
        "one": (busy - overlapping) / whole,
        "overlapping": overlapping / whole,
    }


def _covered(spans: list[Span]) -> float:
    """The time that spans in order of their beginnings cover; one may lie within another."""
    covered, until = 0.0, -math.inf
    for begin, end in spans:
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def trace(pair: ArgsDecoder, case: cases.Case, steps: int) -> list[dict[str, Any]]:
    """The events of so many steps."""
    (prompt,) = case.prompts(pair.language_model.config.get_text_config().vocab_size)
    config = DecodingConfig(k=case.k, max_new_tokens=WARM_UP + 2 * steps, eos_token_ids=[])
    stream = pair.stream(prompt, config)
    for _ in range(WARM_UP):
        next(stream)
    kind = ProfilerActivity.CUDA if pair.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        for _ in range(steps):
            next(stream)
        if pair.device.type == "cuda":
            torch.cuda.synchronize(pair.device)
    require_what_was_asked(pair)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        return json.loads(file.read_text())["traceEvents"]


def markdown(document: dict[str, Any]) -> str:
    lines = ["# What a replayed step does", "", describe(document["environment"]) + "."]
    for name, found in document["traces"].items():
        shares = ", ".join(f"{part} {found[part]:.0%}" for part in ("idle", "one", "overlapping"))
        per_step = found["launches"] / found["steps"]
        lines.append(
            f"\n## {name}\n\n{per_step:.0f} launches per step on {found['streams']} streams; of "
            f"the time: {shares}; the median gap is {found['gap_median']:.1f} us.\n"
        )
        rows = [["kernel", "calls", "median, us", "sum, us"]]
        for kernel in found["kernels"][:40]:
            times = (f"{kernel[part]:.1f}" for part in ("median", "sum"))
            rows.append([kernel["name"][:90].replace("|", "/"), str(kernel["calls"]), *times])
        lines.append(slowdown.as_markdown(rows))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = results.parser(__doc__)
    parser.add_argument("--lm", default="opt-2.7b", choices=models.CONFIGS, metavar="SHAPE")
    parser.add_argument("--rm", default="opt-350m", choices=models.CONFIGS, metavar="SHAPE")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument(
        "--fused-layers",
        action=argparse.BooleanOptionalAction,
        help="layers of both models as one op, or through modules; the engine's choice otherwise",
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu, of which ops are traced")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    case = cases.Case(options.lm, options.rm, prompt=options.prompt)
    device = torch.device("cpu" if options.rehearse else options.device)
    if options.rehearse:
        case = cases.tiny(case)
    pair = build(case, device)
    name = case.name
    if (fused := options.fused_layers) is not None:
        name += ", fused layers" if fused else ", modules"
        (prompt,) = case.prompts(pair.language_model.config.get_text_config().vocab_size)
        pair = variant(pair, [prompt], WARM_UP + 2 * options.steps, fused_layers=fused)
    kinds = KERNELS if device.type == "cuda" else ("cpu_op",)
    found = summarise(trace(pair, case, options.steps), kinds)
    kind = "graph-trace-rehearsed" if options.rehearse else "graph-trace"
    file, document = results.begin(options.results, kind, device, traces={})
    document["traces"][name] = {"steps": options.steps, **found}
    results.write(file, document, markdown(document))
    print(markdown(document), file.with_suffix(".md"), sep="\n")
    return 0 if found["launches"] else 1


if __name__ == "__main__":
    sys.exit(main())
