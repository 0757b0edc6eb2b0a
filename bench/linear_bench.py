"""Few-row matrix products: how near torch, inductor and the Triton kernel come to copying.

    python -m args_fast.bench.linear_bench                  # on a GPU: measures and reports
    python -m args_fast.bench.linear_bench --write-table    # and the engine uses what it found
    TRITON_INTERPRET=1 python -m args_fast.bench.linear_bench --device cpu --toy    # a rehearsal

Every distinct linear layer of four models, at the rows that a step has: 1 (greedy), 10, 16 and 40
(candidates). Each product is made by

- torch: torch.nn.functional.linear, which is cuBLAS on CUDA;
- inductor: the same through torch.compile(mode="max-autotune-no-cudagraphs");
- triton: kernels/triton/linear.py.

Each has to agree with a product in float64 before it is timed. On CUDA a case is one captured
graph, as a step is: the product with one copy of the weights after the other, as many as the L2
cache cannot hold, so every one of them comes from memory. Bytes are those of weights, x, bias and
result, once; the fraction is of the bandwidth of a copy, measured in the same run.

Results are flushed after each case to bench/results/<device>/linear-<date>-<commit>.json and, to
read, .md. The same command again goes on where it stopped (--seconds), in cases and in ways.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from args_fast.bench.models import config
from args_fast.bench.timing import commit, copy_bandwidth, device_name, environment, measure, slug
from args_fast.models.linear import ARRIVALS, FILE, Entry, read_table, write_table
from args_fast.ops.linear import linear

RESULTS = Path(__file__).parent / "results"
ROWS = (1, 10, 16, 40)
WAYS = ("torch", "inductor", "triton")
# Rows that the kernel pads alike, and the measurements that speak for all of them; 17 to 32 have
# none and stay with torch.
PADDINGS = {(1, 1): (1,), (2, 16): (10, 16), (33, 64): (40,)}
MARGIN = 0.98  # of torch's time: what the kernel has to stay under to enter the table
SPREAD = 4  # times the L2 cache: the weights that a graph goes through
COPIES = 256  # of the weights, at most


MODELS: dict[str, PreTrainedConfig] = {
    name: config(name) for name in ("opt-350m", "opt-2.7b", "llama-7b", "llama-3-8b")
}
TOY = {
    "toy": LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=4)
}


@dataclass(frozen=True)
class Shape:
    """Weights [N, K], with a bias or without, and the layers that have them."""

    N: int
    K: int
    bias: bool


def shapes(models: dict[str, PreTrainedConfig]) -> dict[Shape, dict[str, int]]:
    """Every linear layer, with how many of it each model runs in a step."""
    found: dict[Shape, dict[str, int]] = {}
    for name, at in models.items():
        layers = at.num_hidden_layers
        at.num_hidden_layers = 1
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(at)
        at.num_hidden_layers = layers
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                shape = Shape(module.out_features, module.in_features, module.bias is not None)
                counts = found.setdefault(shape, {})
                times = layers if ".layers." in path else 1
                counts[name] = counts.get(name, 0) + times
    return found


@dataclass(frozen=True)
class Case:
    shape: Shape
    rows: int

    @property
    def key(self) -> dict[str, Any]:
        return {"N": self.shape.N, "K": self.shape.K, "bias": self.shape.bias, "rows": self.rows}


def product(way: str, device: torch.device) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    if way == "torch":
        return nn.functional.linear
    if way == "inductor":
        torch._dynamo.reset()
        return torch.compile(
            lambda x, weight, bias: nn.functional.linear(x, weight, bias),
            mode="max-autotune-no-cudagraphs",
            dynamic=False,
            fullgraph=True,
        )
    arrivals = torch.zeros(ARRIVALS, dtype=torch.int32, device=device)
    return lambda x, weight, bias: linear(x, weight, bias, arrivals)


@torch.inference_mode()
def measure_case(
    case: Case, ways: list[str], device: torch.device, dtype: torch.dtype, bandwidth: float
) -> dict[str, Any]:
    """way -> the sample in seconds per product, bytes per second and fraction, or an error."""
    N, K, M = case.shape.N, case.shape.K, case.rows
    options: Any = {"device": device, "dtype": dtype}
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(M, K, generator=generator, **options)
    bias = torch.randn(N, generator=generator, **options) if case.shape.bias else None
    size = dtype.itemsize
    copies = 1
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        copies = max(2, min(COPIES, -(-SPREAD * cache // (N * K * size))))
    weights = [torch.randn(N, K, generator=generator, **options) for _ in range(copies)]
    expected = x.double() @ weights[0].double().T + (0 if bias is None else bias.double())
    moved = size * (N * K + M * K + M * N + (N if case.shape.bias else 0))

    results: dict[str, Any] = {}
    for way in ways:
        try:
            make = product(way, device)
            error = (make(x, weights[0], bias).double() - expected).abs().max().item()
            allowed = max(2 * torch.finfo(dtype).eps, 1e-5) * expected.abs().max().item()
            if not error <= allowed:
                raise ArithmeticError(f"off by {error:.3g}, and {allowed:.3g} is allowed")
            sample = measure(_all(make, x, weights, bias, device), device, cold=False)
            figures = {name: value / copies for name, value in sample.as_json().items()}
            figures |= {"repeats": sample.repeats, "warm_up": sample.warm_up, "products": copies}
            rate = moved * copies / sample.median
            results[way] = {**figures, "bytes_per_second": rate, "fraction": rate / bandwidth}
        except Exception as error:  # of one way; it says so in its place, and the others go on
            results[way] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return results


def _all(
    make: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    device: torch.device,
) -> Callable[[], object]:
    """A call that makes the product with every copy of the weights."""

    def run() -> None:
        for weight in weights:
            make(x, weight, bias)

    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # what is compiled and allocated at the first call is not captured
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def entries(report: dict[str, Any], source: str) -> list[Entry]:
    """The lines of the engine's table that follow: where the kernel beats torch at every measured
    row count of a padding, with and without a bias, it is used."""
    device, dtype = report["environment"]["device"], report["dtype"]
    found = []
    for N, K in sorted({(case["N"], case["K"]) for case in report["cases"]}):
        same = [case for case in report["cases"] if (case["N"], case["K"]) == (N, K)]
        for (first, last), wanted in PADDINGS.items():
            cases = [case for case in same if case["rows"] in wanted]
            pairs = [_medians(case, "torch", "triton") for case in cases]
            if {case["rows"] for case in cases} != set(wanted) or None in pairs:
                continue  # not measured, or not whole
            wins = all(pair[1] < MARGIN * pair[0] for pair in pairs if pair)
            use = "triton" if wins else "torch"
            found.append(Entry(device, dtype, first, last, N, K, use, source))
    return found


def _medians(case: dict[str, Any], *ways: str) -> list[float] | None:
    medians = [case["ways"].get(way, {}).get("median") for way in ways]
    return None if None in medians else medians


def merge(old: list[Entry], new: list[Entry]) -> list[Entry]:
    """New measurements replace those of the same device, type, rows and shape."""

    def key(entry: Entry) -> tuple:
        return entry.device, entry.dtype, entry.first, entry.last, entry.N, entry.K

    return list({key(entry): entry for entry in [*old, *new]}.values())


def markdown(report: dict[str, Any]) -> str:
    facts, bandwidth = report["environment"], report["copy_bandwidth"]
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if v)
    lines = [
        f"# Few-row matrix products on {facts['device']}",
        "",
        f"Measured {facts['date']}, commit {facts['commit']}; {versions}, CUDA {facts['cuda']}; "
        f"{report['dtype']}. A copy reaches {bandwidth / 1e9:.0f} GB/s (read and written).",
        "",
        *_caveat(facts),
        "Median microseconds per product, and the share of the copy bandwidth it makes use of.",
        "",
        f"| N x K | bias | rows | {' | '.join(WAYS)} |",
        f"| --- | --- | ---: |{' ---: |' * len(WAYS)}",
    ]
    for case in report["cases"]:
        cells = [_cell(case["ways"].get(way)) for way in WAYS]
        bias = "yes" if case["bias"] else "no"
        lines.append(
            f"| {case['N']} x {case['K']} | {bias} | {case['rows']} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        "All linear layers of one forward pass, in microseconds: the floor is their weights at the "
        "bandwidth of the copy (computed); the others are sums of the medians above.",
        "",
        f"| model | rows | floor | {' | '.join(WAYS)} | best of torch and triton |",
        f"| --- | ---: | ---: |{' ---: |' * (len(WAYS) + 1)}",
    ]
    return "\n".join([*lines, *_passes(report)]) + "\n"


def _caveat(facts: dict[str, Any]) -> list[str]:
    if facts["cuda"] and "NVIDIA" in facts["device"]:
        return []
    return [
        "A rehearsal: on a CPU the Triton kernel is interpreted; its times say nothing.",
        "",
    ]


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    if "error" in result:
        return result["error"].replace("|", "/")
    return f"{result['median'] * 1e6:.1f} ({result['fraction']:.0%})"


def _passes(report: dict[str, Any]) -> list[str]:
    lines = []
    size = getattr(torch, report["dtype"]).itemsize
    for model in sorted({name for case in report["cases"] for name in case["models"]}):
        for rows in ROWS:
            layers = [
                (case, case["models"][model])
                for case in report["cases"]
                if case["rows"] == rows and model in case["models"]
            ]
            if len(layers) < report["layers"][model]:
                continue  # not all of them measured yet
            weights = sum(case["N"] * case["K"] * times for case, times in layers) * size
            ways = [(way,) for way in WAYS] + [("torch", "triton")]
            sums = [_sum(layers, way) for way in ways]
            floor = weights / report["copy_bandwidth"] * 1e6
            lines.append(f"| {model} | {rows} | {floor:.0f} | {' | '.join(sums)} |")
    return lines


def _sum(layers: list[tuple[dict[str, Any], int]], ways: tuple[str, ...]) -> str:
    medians = [(_medians(case, *ways), times) for case, times in layers]
    if any(found is None for found, _ in medians):
        return "-"
    return f"{sum(min(found) * times for found, times in medians if found) * 1e6:.0f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to rehearse")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), choices=ROWS)
    parser.add_argument("--seconds", type=float, default=540, help="begin no case after so long")
    parser.add_argument("--toy", action="store_true", help="a tiny model's layers only")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for results")
    parser.add_argument("--write-table", action="store_true", help="enter the winners into FILE")
    parser.add_argument("--table", type=Path, default=FILE, help=f"default: {FILE}")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype)
    models = TOY if options.toy else MODELS
    layers = shapes(models)

    folder = options.results / slug(device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    kind = "linear-toy" if options.toy else "linear"
    file = folder / f"{kind}-{date.today()}-{commit()}.json"
    if file.exists():
        report = json.loads(file.read_text())
        if report["dtype"] != options.dtype:
            sys.exit(f"{file} holds {report['dtype']}; move it away to measure {options.dtype}")
    else:
        report = {
            "environment": environment(device),
            "dtype": options.dtype,
            "copy_bandwidth": copy_bandwidth(device, 2**20 if options.toy else None),
            "layers": {name: sum(name in of for of in layers.values()) for name in models},
            "cases": [],
        }
    cases = [Case(shape, rows) for rows in options.rows for shape in layers]
    for number, case in enumerate(cases, 1):
        known = next((old for old in report["cases"] if case.key.items() <= old.items()), None)
        if known is None:
            known = {**case.key, "models": layers[case.shape], "ways": {}}
        ways = [way for way in options.ways if way not in known["ways"]]
        if not ways:
            continue
        if time.monotonic() - began > options.seconds:
            print(f"time is up before case {number} of {len(cases)}: the same command goes on")
            break
        known["ways"] |= measure_case(case, ways, device, dtype, report["copy_bandwidth"])
        if known not in report["cases"]:
            report["cases"].append(known)
        _write(file, report)
        print(f"{number}/{len(cases)}", case.key, {w: _cell(known["ways"][w]) for w in ways})
        if device.type == "cuda":
            torch.cuda.empty_cache()

    new = entries(report, file.name)
    print(f"the table's entries that follow, {len(new)}:")
    for entry in new:
        print(f"  {entry.dtype} rows {entry.first}-{entry.last} {entry.N} x {entry.K}: {entry.use}")
    if options.write_table:
        old = read_table(options.table) if options.table.exists() else []
        write_table(merge(old, new), options.table)
        print(f"written to {options.table}")
    print(file.with_suffix(".md"))


def _write(file: Path, report: dict[str, Any]) -> None:
    """Whole or not at all, whenever the machine is taken away."""
    for path, text in (
        (file, json.dumps(report, indent=1)),
        (file.with_suffix(".md"), markdown(report)),
    ):
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        part.replace(path)


if __name__ == "__main__":
    main()
