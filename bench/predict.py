"""The tables of docs/performance.md, computed; nothing in them is measured.

    python -m args_fast.bench.predict             # from bench/compiled.json
    python -m args_fast.bench.predict --compile   # count the steps and compile the kernels first

Only what lies between the document's markers is written. Needs no GPU; --compile needs Triton, and
nvcc for the CUDA C++ kernels.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from args_fast.bench import gpu_model, models
from args_fast.bench.cases import chosen
from args_fast.bench.gpu_model import ARCH, REACHED, Launch, Model, Pass, Step, step
from args_fast.bench.launches import PAIRS, PROMPTS, K, collect
from args_fast.bench.plan import planned
from args_fast.bench.resources import MACHINES
from args_fast.bench.roofline import DEVICES, cache_bytes, floor

HERE = Path(__file__).resolve().parent
DATA = HERE / "compiled.json"
DOCUMENT = HERE.parent / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- computed: (\w+) -->\n).*?(<!-- end -->)", re.S)

TARGETS = {PAIRS[0]: 1.25, PAIRS[1]: 1.15, PAIRS[2]: 2.15}
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def render(text: str, data: dict[str, Any]) -> str:
    """The document with its tables computed anew."""
    return MARKED.sub(
        lambda found: found[1] + "\n".join(TABLES[found[2]](data)) + "\n" + found[3], text
    )


def _table(header: str, rows: Iterator[tuple], left: int = 1) -> list[str]:
    titles = header.split(" | ")
    rule = ["---"] * left + ["---:"] * (len(titles) - left)
    lines = [titles, rule, *([str(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _model(data: dict[str, Any], device: str = "h100") -> Model:
    return Model(data, DEVICES[device], ARCH[device])


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _between(bounds: tuple[float, float], scale: float) -> str:
    return " to ".join(f"{bound / scale:.2f}" for bound in bounds)


def _assumptions(data: dict[str, Any]) -> list[str]:
    at = gpu_model

    def rows() -> Iterator[tuple]:
        clocks = ", ".join(
            f"{MACHINES[arch].name} {hz / 1e9:.4g} GHz" for arch, hz in at.CLOCK.items()
        )
        yield (
            "from kernel to kernel in a replayed graph",
            f"{at.LAUNCH * 1e6:.1f} µs",
            "an H100, as reported in [Look Ma, No Bubbles!]"
            "(https://hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles)",
        )
        yield (
            "a load from memory; from L2",
            f"{at.FAR * 1e6:.1f} µs; {at.NEAR * 1e6:.1f} µs",
            "assumed: three times the 400 cycles, and twice and a half the 200, that [a table of "
            "idle latencies](https://pmc.ncbi.nlm.nih.gov/articles/PMC10448217/table/t0015) gives",
        )
        yield (
            "between two instructions of a warp",
            f"{at.CYCLES} cycles",
            "the latency of arithmetic in the same table; one cycle for each warp of a scheduler",
        )
        yield "clock", clocks, "the same table"
        yield (
            "bandwidth that a kernel with enough under way reaches",
            f"{REACHED:.0%} of the data sheet",
            "assumed; the check measures a copy, and all here scales with it",
        )
        yield (
            "bandwidth and peak",
            "; ".join(f"{d.name} {d.bandwidth / 1e12:.3g} TB/s" for d in DEVICES.values()),
            "NVIDIA's data sheets (`bench/roofline.py`)",
        )
        yield (
            "a small kernel (norm, addition, copy)",
            f"{_us(_model(data).small)} µs on an H100",
            "its launch, a load from L2 and a hundred instructions",
        )

    return _table("what | value | from", rows(), 3)


def _headline(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        for name in ("h100", "h200"):
            model = _model(data, name)
            copy = REACHED * model.device.bandwidth
            for lm, rm in PAIRS:
                for t in PROMPTS:
                    eager, fused = (step(m, lm, rm, t) for m in (model, replace(model, fused=True)))
                    least = floor(lm, rm, k=K, t=t, batch=1, dtype="bfloat16", device=model.device)
                    yield (
                        f"{model.device.name}, {lm} + {rm}",
                        t,
                        f"{least.slowdown:.2f}",
                        TARGETS[lm, rm],
                        _ms(eager.greedy),
                        f"{least.lm.bytes / eager.greedy / copy:.0%}",
                        f"{eager.sequential / eager.greedy:.2f}",
                        _between(eager.lookahead, eager.greedy),
                        _ms(fused.greedy),
                        f"{least.lm.bytes / fused.greedy / copy:.0%}",
                        f"{fused.sequential / fused.greedy:.2f}",
                        _between(fused.lookahead, fused.greedy),
                    )

    return _table(
        "device, pair | prompt | floor | target | greedy, ms | of copy | slowdown | with lookahead"
        " | fused: greedy, ms | of copy | slowdown | with lookahead",
        rows(),
    )


def _passes(data: dict[str, Any]) -> list[str]:
    model = _model(data)

    def rows() -> Iterator[tuple]:
        seen = set()
        for lm, rm in PAIRS:
            for t in PROMPTS:
                found = step(model, lm, rm, t)
                parts = (
                    ("lm", lm, 1, found.lm),
                    ("lm", lm, K, found.lm_ahead),
                    ("rm", rm, K, found.rm),
                )
                for part, name, count, of in parts:
                    if (part, name, count, t) not in seen:
                        seen.add((part, name, count, t))
                        yield _pass(
                            f"{name} ({part.upper()}), {count}", t, of, f"{lm} + {rm}", part
                        )

    def _pass(title: str, t: int, of: Pass, pair: str, part: str) -> tuple:
        counted = data["steps"][pair][part]
        return (
            title,
            t,
            of.launches,
            counted["linear"],
            of.launches - counted["linear"] - counted["small"],
            f"{counted['small']} ({counted['runs']})",
            *(_ms(seconds) for seconds in (of.products, of.attention, of.small, of.seconds)),
            _ms(of.bytes / model.device.bandwidth),
        )

    return _table(
        "model, rows | prompt | launches | products | attention | small (runs) | products, ms |"
        " attention, ms | small, ms | together, ms | floor, ms",
        rows(),
    )


def _changes(data: dict[str, Any]) -> list[str]:
    model = _model(data)
    variants: dict[str, Model] = {
        "as it is": model,
        "small kernels fused": replace(model, fused=True),
        "queries, keys and values in one product": replace(model, merged=True),
        "both": replace(model, fused=True, merged=True),
        "as it is, and products reach 60% of the bandwidth": replace(model, streaming=0.6),
    }

    def rows() -> Iterator[tuple]:
        for name, variant in variants.items():
            cells: list[str] = []
            for lm, rm in PAIRS:
                found: Step = step(variant, lm, rm, PROMPTS[0])
                cells += [
                    _ms(found.greedy),
                    f"{found.sequential / found.greedy:.2f}",
                    _between(found.lookahead, found.greedy),
                ]
            yield name, *cells

    header = " | ".join(f"{rm}: greedy, ms | slowdown | lookahead" for _, rm in PAIRS)
    return _table(f"change | {header}", rows())


def _splits(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        for name, count in (("opt-2.7b", 1), ("opt-350m", K), ("opt-125m", K), ("llama-7b", K)):
            for t in PROMPTS:
                cells: list[object] = []
                for times in (0.0, 0.5, 1.0, 1.5, 2.0):
                    model = replace(_model(data), splits=times)
                    main, *_ = launches = model.attention(name, count, t)
                    how = f"({main.programs}, {main.turns}, {main.waves(model.arch)})"
                    cells.append(f"{_us(model.seconds(launches))} {how}")
                yield f"{name}, {count}", t, *cells

    titles = "undivided | half | as it is | one and a half | twice"
    return _table(f"model, rows | prompt | {titles}", rows())


def _batch(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        for lm, rm in PAIRS:
            for t in PROMPTS:
                found = [
                    floor(lm, rm, k=K, t=t, batch=b, dtype="bfloat16", device=DEVICES["h100"])
                    for b in BATCHES
                ]
                yield (
                    f"{lm} + {rm}",
                    t,
                    *(
                        f"{f.slowdown:.2f} ({b / f.step_seconds:.0f})"
                        for b, f in zip(BATCHES, found, strict=True)
                    ),
                )

    return _table(f"pair | prompt | {' | '.join(f'B = {b}' for b in BATCHES)}", rows())


def _memory(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        for rm in dict.fromkeys(rm for _, rm in PAIRS):
            for t in PROMPTS:
                row = cache_bytes(rm, tokens=1, dtype="bfloat16")
                ours = (-(-t // 16) * 16 + K) * row
                copies = K * (t + 1) * row
                yield (
                    rm,
                    t,
                    f"{row / 1024:.0f} KiB",
                    f"{ours / 2**20:.1f} MiB",
                    f"{copies / 2**20:.1f} MiB",
                    f"{copies / ours:.1f}",
                )

    return _table("reward model | prompt | one token | ours | k copies | times", rows())


def _copies(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        for lm, rm in PAIRS:
            for t in PROMPTS:
                ours = floor(lm, rm, k=K, t=t, batch=1, dtype="bfloat16", device=DEVICES["h100"])
                least = ours.lm.bytes + ours.rm.bytes
                # Chosen and repeated, copied again to take one row more (read, written), and read.
                more = 4 * K * cache_bytes(rm, tokens=t, dtype="bfloat16")
                yield (
                    f"{lm} + {rm}",
                    t,
                    f"{least / 1e9:.2f} GB",
                    f"{(least + more) / 1e9:.2f} GB",
                    f"{(least + more) / least:.1f}",
                )

    return _table("pair | prompt | ours | k copies | times", rows())


def _launches(model: Model) -> Iterator[tuple[str, Launch]]:
    """Every kernel of the headline shapes at batch 1."""
    for lm, rm in PAIRS:
        for name, count in ((lm, 1), (lm, K), (rm, K)):
            for t in PROMPTS:
                for launch in model.attention(name, count, t):
                    yield f"{name}, N {count}, t {t}", launch
        for name, count, head in ((lm, 1, True), (lm, K, True), (rm, K, False)):
            for s in model.layers(name, head):
                yield f"M {count}, {s.N} x {s.K}", model.linear(count, s.N, s.K, s.bias)
        V = models.config(lm).vocab_size
        for of in (model, replace(model, data={**model.data, "cuda": {}})):  # without CUDA C++
            for launch in of.topk(V):
                yield f"V {V}, k {K}", launch
            for launch in of.select_commit(rm):
                yield rm, launch
        yield lm, model.commit(lm)


def _distinct(model: Model) -> dict[tuple[str, str], Launch]:
    return {(where, launch.name): launch for where, launch in _launches(model)}


def _times(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        of = {name: _distinct(_model(data, name)) for name in ARCH}
        model = _model(data)
        for (where, name), launch in of["h100"].items():
            least = max(
                launch.floor / model.device.bandwidth,
                launch.flops / model.device.peak["bfloat16"],
            )
            seconds = {
                device: at[where, name].seconds(DEVICES[device], ARCH[device])
                for device, at in of.items()
            }
            yield (
                f"`{name}`, {where}",
                launch.programs,
                launch.waves(model.arch),
                f"{launch.bytes / 1e6:.2f}" if launch.bytes else "-",
                f"{launch.flops / 1e9:.3f}" if launch.flops else "-",
                _us(least) if least else "-",
                _us(seconds["h100"]),
                f"{least / seconds['h100']:.0%}" if least else "-",
                _us(seconds["h200"]),
                _us(seconds["a100-80gb"]),
            )

    return _table(
        "kernel | programs | waves | MB | GFLOP | floor, µs | H100, µs | floor of it | H200, µs |"
        " A100, µs",
        rows(),
    )


def _resources(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        for name in ("a100-80gb", "h100"):
            model = _model(data, name)
            found: dict[tuple, list[str]] = {}
            for (where, kernel), launch in _distinct(model).items():
                at = launch.kernel
                occupancy = at["fit"] * at["warps"] * 32 / MACHINES[model.arch].threads
                cells = (
                    f"sm_{model.arch} `{kernel}`",
                    at["warps"],
                    at["registers"],
                    at["spilled"],
                    at["shared_memory"],
                    at["fit"],
                    f"{occupancy:.0%}",
                    at["limit"],
                    _widths(at["loads"]),
                    _widths(at["copies"]),
                    at["tensor_cores"],
                    at["loop"],
                    at["straight"],
                )
                found.setdefault(cells, []).append(where)
            for cells, used in found.items():
                more = f" and {len(used) - 1} more" if len(used) > 1 else ""
                yield f"{cells[0]}, {used[0]}{more}", *cells[1:]

    return _table(
        "kernel | warps | registers | spilled | shared | fit | occupancy | limit | loads | copies |"
        " mma | loop | straight",
        rows(),
    )


def _widths(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} of {width}" for width, n in counts.items()) or "-"


def _plan(data: dict[str, Any]) -> list[str]:
    def rows() -> Iterator[tuple]:
        total = dict.fromkeys(devices, 0.0)
        for each in zip(*(planned(chosen("all"), name) for name in devices), strict=True):
            case, missing, _ = each[0]
            seconds = [found[2] for found in each]
            for name, more in zip(devices, seconds, strict=True):
                total[name] += more
            yield (
                f"{case.lm} + {case.rm}, k {case.k}, prompt {case.prompt}, batch {case.batch}",
                len(missing) if missing == case.methods else f"+ {len(missing)} compiled",
                *(f"{s:.0f} ({t:.0f})" for s, t in zip(seconds, total.values(), strict=True)),
            )

    devices = ("h100", "h200", "a100-80gb")
    return _table("case | methods | H100, s (in all) | H200 | A100", rows())


def _versions(data: dict[str, Any]) -> list[str]:
    names = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    return [f"Compiled and counted with {names}."]


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "assumptions": _assumptions,
    "headline": _headline,
    "passes": _passes,
    "changes": _changes,
    "splits": _splits,
    "batch": _batch,
    "memory": _memory,
    "copies": _copies,
    "times": _times,
    "resources": _resources,
    "plan": _plan,
    "versions": _versions,
}


def _dump(data: dict[str, Any]) -> str:
    """A kernel a line, so that two versions compare well."""
    parts = []
    for name, part in data.items():
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in part.items())
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", action="store_true", help=f"write {DATA.name} anew")
    logging.set_verbosity_error()
    if parser.parse_args(arguments).compile:
        DATA.write_text(_dump(collect()))
    DOCUMENT.write_text(render(DOCUMENT.read_text(), json.loads(DATA.read_text())))
    print(DOCUMENT)


if __name__ == "__main__":
    main()
