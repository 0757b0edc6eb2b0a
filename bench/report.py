"""All results as one page. Every number comes from a results file, or is computed from its case by
roofline.py; the page says which, and keeps the two in columns of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args_fast.bench import baselines, plots, roofline
from args_fast.bench.cases import Case
from args_fast.bench.results import Results, read_all
from args_fast.errors import ConfigError

DASH = "-"
SHORT = {
    baselines.TRANSFORMERS: "transformers",
    baselines.STATIC: "transformers, static + compile",
    baselines.GREEDY: "args-fast",
}


@dataclass(frozen=True)
class Row:
    """One case as measured on one device."""

    case: Case
    record: dict[str, Any]
    results: Results

    def step(self, method: str) -> float | None:
        """Seconds per step; None where the method was not measured, or failed."""
        return self.record["methods"].get(method, {}).get("step_seconds")

    def slowdown(self, method: str = baselines.ARGS, against: str = baselines.TRANSFORMERS):
        step, base = self.step(method), self.step(against)
        return step / base if step and base else None

    def spread(self) -> tuple[float, float] | None:
        """The quartiles of ARGS' step, seconds."""
        figures = self.record["methods"].get(baselines.ARGS, {})
        if "step_seconds" not in figures:
            return None
        return figures["step_seconds_low"], figures["step_seconds_high"]

    @property
    def floor(self) -> roofline.Floor:
        """Computed from the bandwidth and the peak of this device, in the middle of the decode."""
        machine, case = self.results.machine, self.case
        device = roofline.Device(
            self.results.environment["device"], machine["bandwidth"], machine["peak"], "measured"
        )
        return roofline.floor(
            case.lm,
            case.rm,
            k=case.k,
            t=case.prompt + case.new_tokens // 2,
            batch=case.batch,
            dtype=case.dtype,
            device=device,
        )

    @property
    def commit(self) -> str:
        return self.results.environment["commit"]


def write_report(folder: Path, output: Path) -> Path:
    """Read every results file under ``folder`` and write the page and, beside it, plots/*.png."""
    files = [found for found in read_all(folder) if not found.dry_run]
    devices = _by_device(files)
    if not devices:
        raise ConfigError(f"there are no results under {folder}; make some with: args-fast bench")
    pictures = output.parent / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    sections = [_opening(devices), _machines(devices), _paper(devices)]
    for device, rows in devices.items():
        sections.append(_device(device, rows, pictures))
    sections.append(_method())
    output.write_text("\n\n".join(sections) + "\n")
    return output


def _by_device(files: Iterable[Results]) -> dict[str, list[Row]]:
    """Device -> its cases, each as measured last. GPUs come first."""
    latest: dict[str, dict[str, Row]] = {}
    for results in files:
        device = results.environment["device"]
        for key, record in results.cases.items():
            if record["complete"]:
                case = Case.from_json(record["case"])
                latest.setdefault(device, {})[key] = Row(case, record, results)
    found = {device: sorted(rows.values(), key=_order) for device, rows in latest.items()}
    return dict(sorted(found.items(), key=lambda item: _type(item[1]) != "cuda"))


def _order(row: Row) -> tuple:
    case = row.case
    return (
        -roofline.model_cost(case.lm, True).parameters,
        case.rm,
        case.batch,
        case.prompt,
        case.k,
    )


def _type(rows: list[Row]) -> str:
    return rows[0].results.machine["type"]


def _opening(devices: dict[str, list[Row]]) -> str:
    lines = [
        "# How many times slower than greedy decoding",
        "",
        "Made by `args-fast bench report` from the files in `bench/results`; not written by hand.",
        "What is marked **measured** was timed on the device that is named; what is marked",
        "**computed** is a floor from `bench/roofline.py`: bytes by bandwidth, or flops by peak.",
    ]
    if all(_type(rows) != "cuda" for rows in devices.values()):
        lines += ["", "**No GPU has been measured yet.** All that is measured here ran on a CPU."]
    return "\n".join(lines)


def _machines(devices: dict[str, list[Row]]) -> str:
    rows = []
    for device, measured in devices.items():
        for results in {id(row.results): row.results for row in measured}.values():
            has, at = results.environment, results.machine
            peaks = ", ".join(f"{peak / 1e12:.3g} ({name})" for name, peak in at["peak"].items())
            versions = [f"{name} {version}" for name, version in has["versions"].items() if version]
            if has["cuda"]:
                versions.append(f"CUDA {has['cuda']}")
            rows.append(
                [
                    device,
                    has["threads"] if at["type"] == "cpu" else DASH,
                    f"{at['bandwidth'] / 1e9:.0f}",
                    peaks,
                    ", ".join(versions),
                    has["commit"],
                    has["date"][:10],
                ]
            )
    header = [
        "device",
        "threads",
        "copy GB/s",
        "matrix product TFLOP/s",
        "versions",
        "commit",
        "day",
    ]
    return "## Where (measured)\n\n" + _table(header, rows)


def _paper(devices: dict[str, list[Row]]) -> str:
    """The paper's figure, and ours for its pair of models."""
    rows: list[list[Any]] = [
        [
            "reported by the paper",
            "A100-class",
            "OPT-2.7B",
            10,
            DASH,
            DASH,
            "1.9",
            DASH,
            DASH,
        ]
    ]
    for device, measured in devices.items():
        for row in measured:
            case = row.case
            if (case.lm, case.k, case.batch) == ("opt-2.7b", 10, 1):
                rows.append(
                    [
                        "measured",
                        device,
                        f"{case.lm} + {case.rm}",
                        case.k,
                        case.prompt,
                        case.dtype,
                        *(_ratio(row.slowdown(against=name)) for name in SHORT),
                    ]
                )
    header = ["", "device", "models", "k", "prompt", "dtype", *(f"x {n}" for n in SHORT.values())]
    words = (
        "The paper gives 1.9 as its slowdown against greedy decoding for OPT-2.7B with k = 10. It "
        "was not measured here, nor on a device of this list: the rows are different experiments."
    )
    if len(rows) == 1:
        words += " OPT-2.7B has not been measured yet."
    else:
        words += f" Ours: {', '.join(dict.fromkeys(row[1] for row in rows[1:]))}."
    return f"## Beside the paper\n\n{words}\n\n" + _table(header, rows)


def _device(device: str, rows: list[Row], pictures: Path) -> str:
    parts = [f"## {device}", "### Slowdown", _slowdowns(rows), "### Against the floor"]
    parts += [_against_floor(rows), plots.roofline(rows, device, pictures)]
    for axis in plots.AXES:
        series = _series(rows, axis)
        if series:
            parts += [f"### By {plots.AXES[axis].title}"]
            parts += [plots.slowdown(series, axis, device, pictures), _slopes(series, axis)]
    parts += ["### Every method: time of a step", _methods(rows)]
    parts += ["### Prompt and memory", _memory(rows)]
    if any("parts" in row.record for row in rows):
        parts += ["### Where a step's time goes (measured)", plots.parts(rows, device, pictures)]
    failures = _failures(rows)
    if failures:
        parts += ["### What failed", failures]
    return "\n\n".join(parts)


def _names(row: Row) -> list[Any]:
    case = row.case
    return [f"{case.lm} + {case.rm}", case.k, case.prompt, case.batch, case.dtype]


NAMES = ["models", "k", "prompt", "batch", "dtype"]


def _slowdowns(rows: list[Row]) -> str:
    header = [*NAMES, "ARGS ms/step", "quartiles", *(f"x {name}" for name in SHORT.values())]
    header += ["k-copies x", "no cache x", "commit"]
    body = [
        [
            *_names(row),
            _ms(row.step(baselines.ARGS)),
            DASH if row.spread() is None else " ".join(map(_ms, row.spread())),
            *(_ratio(row.slowdown(against=name)) for name in SHORT),
            _ratio(row.slowdown(baselines.K_COPIES)),
            _ratio(row.slowdown(baselines.NAIVE)),
            row.commit,
        ]
        for row in rows
    ]
    return (
        "All **measured**. x NAME: the time of a step of ARGS over that of NAME's greedy decoding; "
        "the last two: the published way of caching and none at all, over transformers' greedy.\n\n"
        + _table(header, body)
    )


def _against_floor(rows: list[Row]) -> str:
    header = [
        *NAMES,
        "slowdown x args-fast, measured",
        "slowdown floor, computed",
        "greedy ms, measured",
        "greedy floor ms, computed",
        "ARGS ms, measured",
        "ARGS floor ms, computed",
        "fraction of the roofline",
    ]
    body = []
    for row in rows:
        floor, step = row.floor, row.step(baselines.ARGS)
        body.append(
            [
                *_names(row),
                _ratio(row.slowdown(against=baselines.GREEDY)),
                f"{floor.slowdown:.2f}",
                _ms(row.step(baselines.GREEDY)),
                _ms(floor.greedy_seconds),
                _ms(step),
                _ms(floor.step_seconds),
                f"{floor.step_seconds / step:.0%}" if step else DASH,
            ]
        )
    return (
        "Floors are **computed** from the copy bandwidth and matrix product of this device. The "
        "fraction of the roofline is the computed floor over the measured time, of a step of ARGS; "
        "a machine that reads faster than it copies can exceed 100%.\n\n" + _table(header, body)
    )


def _methods(rows: list[Row]) -> str:
    header = [*NAMES, *(f"{name}, ms" for name in baselines.METHODS)]
    body = [[*_names(row), *(_ms(row.step(name)) for name in baselines.METHODS)] for row in rows]
    return "All **measured**.\n\n" + _table(header, body)


def _memory(rows: list[Row]) -> str:
    shown = (baselines.ARGS, baselines.TRANSFORMERS, baselines.K_COPIES)
    header = [*NAMES, *(f"prompt, {name}, ms, measured" for name in shown)]
    header += [f"peak beyond the models, {name}, MiB, measured" for name in shown]
    header += ["reward cache per sequence, MiB, computed", "k copies of it, MiB, computed"]
    body = []
    for row in rows:
        figures = [row.record["methods"].get(name, {}) for name in shown]
        cache = row.record["cache"]
        body.append(
            [
                *_names(row),
                *(_ms(each.get("prefill_seconds")) for each in figures),
                *(_added(each) for each in figures),
                f"{cache['rm_bytes_per_sequence'] / 2**20:.1f}",
                f"{cache['rm_bytes_of_k_copies'] / 2**20:.1f}",
            ]
        )
    return (
        "The prompt's time is that of a decode of one token. Peak memory is known of GPUs only.\n\n"
        + _table(header, body)
    )


def _added(figures: dict[str, Any]) -> str:
    peak, before = figures.get("peak_memory_bytes"), figures.get("memory_before_bytes")
    return DASH if peak is None or before is None else f"{(peak - before) / 2**20:.0f}"


def _series(rows: list[Row], axis: str) -> list[list[Row]]:
    """Rows that differ in ``axis`` alone, at two points of it or more; the longest first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.step(baselines.ARGS) and row.step(baselines.TRANSFORMERS):
            others = row.case.as_json() | {axis: None, "methods": None}
            groups.setdefault(str(others), []).append(row)
    found = [
        sorted(group, key=lambda row: getattr(row.case, axis))
        for group in groups.values()
        if len(group) > 1
    ]
    return sorted(found, key=len, reverse=True)[:3]


def _slopes(series: list[list[Row]], axis: str) -> str:
    """What one more of the axis costs ARGS: least squares over the series."""
    unit = plots.AXES[axis].per
    lines = []
    for rows in series:
        x = [getattr(row.case, axis) for row in rows]
        y = [row.step(baselines.ARGS) or 0.0 for row in rows]
        slope = _slope(x, y) * unit.count * 1e3
        lines.append(
            f"- {plots.label(rows[0].case, axis)}: {slope:+.3f} ms per step "
            f"for {unit.name} (fitted to {len(rows)} **measured** points)"
        )
    return "\n".join(lines)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    middle, height = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return rise / sum((a - middle) ** 2 for a in x)


def _failures(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if "error" in row.record:
            lines.append(f"- {row.case.key}: {row.record['error']}")
        lines += [
            f"- {row.case.key}: {name}: {figures['error']}"
            for name, figures in row.record["methods"].items()
            if "error" in figures
        ]
    return "\n".join(lines)


def _method() -> str:
    return (
        "## How it is measured\n\n"
        "Models are built from their configurations at true sizes with random weights; prompts are "
        "random ids; nothing ends early. All methods of a row ran in one process. A step is "
        "(T(n) - T(1)) / (n - 1), where T(n) is the median time of decoding n tokens, prompt "
        "included, after warm-up; the k-copies cache decodes at most 32 tokens, the one with no "
        "cache 4. Greedy by transformers is `generate` with its dynamic cache, and with a static "
        "cache and `torch.compile`. The k-copies cache is the published code's, written afresh. "
        "In float32 all greedy decoders give the same tokens, and all ARGS decoders do "
        "(`tests/bench/test_baselines.py`)."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    return f"{seconds * 1e3:.0f}" if seconds >= 1 else f"{seconds * 1e3:.3g}"


def _ratio(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"
