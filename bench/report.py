"""All results as one page. Every number comes from a results file, or is computed from its case by
roofline.py; the page says which, and keeps the two in columns of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args_fast.bench import baselines, parts, plots, roofline
from args_fast.bench.cases import HEADLINE, Case
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
        machine = self.results.machine
        device = roofline.Device(
            self.results.environment["device"], machine["bandwidth"], machine["peak"], "measured"
        )
        return self.case.floor(device)

    @property
    def drifts(self) -> list[float]:
        """What ARGS took beside methods that were added later, over what it had taken before."""
        step = self.step(baselines.ARGS)
        again = (each["args"].get("step_seconds") for each in self.record.get("added", ()))
        return [later / step for later in again if later and step]

    @property
    def over_floor(self) -> float | None:
        """The measured slowdown against our own greedy decoding over its computed floor."""
        slowdown = self.slowdown(against=baselines.GREEDY)
        return slowdown / self.floor.slowdown if slowdown else None

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
    sections = [_opening(devices), _headline(devices), _paper(devices), _machines(devices)]
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


def _headline(devices: dict[str, list[Row]]) -> str:
    """What a reader came for: k = 10, one prompt at a time."""
    header = [
        "device",
        "models",
        "prompt",
        "dtype",
        "tokens/s, measured",
        *(f"slowdown x {name}, measured" for name in SHORT.values()),
        "floor of the slowdown, computed",
        "x args-fast / floor",
        "step ms, measured",
        "step floor ms, computed",
        "peak memory GiB, measured",
    ]
    body = [
        [
            device,
            f"{row.case.lm} + {row.case.rm}",
            row.case.prompt,
            row.case.dtype,
            _speed(row.record["methods"].get(baselines.ARGS, {})),
            *(_ratio(row.slowdown(against=name)) for name in SHORT),
            f"{row.floor.slowdown:.2f}",
            _ratio(row.over_floor),
            _ms(row.step(baselines.ARGS)),
            _ms(row.floor.step_seconds),
            _peak(row.record["methods"].get(baselines.ARGS, {})),
        ]
        for device, rows in devices.items()
        for row in sorted(rows, key=_rank)  # else in the order that they have
        if (row.case.k, row.case.batch) == (10, 1)
    ]
    words = (
        "ARGS with k = 10, one prompt at a time. A slowdown is the time of a step of ARGS over "
        "that of a step of greedy decoding: by transformers' `generate`, by `generate` with a "
        "static cache and torch.compile, and by args-fast's own engine. The floor is that of two "
        "models which do nothing but read their weights and caches, or multiply; the column "
        "behind it is the **measured** slowdown against args-fast's own greedy over that "
        "**computed** floor. Peak memory, models included, is known of GPUs only."
    )
    if not body:
        return f"## Headline\n\n{words}\n\nNo such case has been measured yet."
    return f"## Headline\n\n{words}\n\n" + _table(header, body)


def _rank(row: Row) -> int:
    """The paper's pair first, and what else is headline; the others behind it."""
    keys = [case.key for case in HEADLINE]
    return keys.index(row.case.key) if row.case.key in keys else len(keys)


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
            "A100-class, not ours",
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
    return f"## SideStream the paper\n\n{words}\n\n" + _table(header, rows)


def _device(device: str, rows: list[Row], pictures: Path) -> str:
    section = [f"## {device}", "### Slowdown", _slowdowns(rows), "### Against the floor"]
    section += [_against_floor(rows), plots.roofline(rows, device, pictures)]
    for axis in plots.AXES:
        series = _series(rows, axis)
        if series:
            section += [f"### By {plots.AXES[axis].title}"]
            section += [plots.slowdown(series, axis, device, pictures), _slopes(series, axis)]
    section += ["### Every method: time of a step", _methods(rows)]
    options = [row for row in rows if any(row.step(name) for name in baselines.VARIANTS)]
    if options:
        section += ["### ARGS with other options", _options(options)]
    section += ["### Prompt and memory", _memory(rows)]
    profiled = [row for row in rows if "parts" in row.record]
    if profiled:
        section += ["### Where a step's time goes", plots.parts(profiled, device, pictures)]
        section += [_parts(profiled)]
    failures = _failures(rows)
    if failures:
        section += ["### What failed", failures]
    return "\n\n".join(section)


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
            DASH if row.spread() is None else " to ".join(map(_ms, row.spread())),
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
    names = [name for name in baselines.METHODS if name not in baselines.VARIANTS]
    header = [*NAMES, *(f"{name}, ms" for name in names), "ARGS, tokens/s"]
    body = [
        [
            *_names(row),
            *(_ms(row.step(name)) for name in names),
            _speed(row.record["methods"].get(baselines.ARGS, {})),
        ]
        for row in rows
    ]
    return "All **measured**; tokens/s are of all prompts together.\n\n" + _table(header, body)


def _options(rows: list[Row]) -> str:
    """Ours as it comes, and with what can be turned on and off."""
    names = [name for name in baselines.VARIANTS if any(row.step(name) for row in rows)]
    header = [*NAMES, f"{baselines.ARGS}, ms", *(f"{name}, ms" for name in names)]
    header += ["compiled ARGS x compiled greedy", "compiled ARGS x transformers, static + compile"]
    compiled = [
        (baselines.ARGS_COMPILED, against)
        for against in (baselines.GREEDY_COMPILED, baselines.STATIC)
    ]
    body = [
        [
            *_names(row),
            _ms(row.step(baselines.ARGS)),
            *(_ms(row.step(name)) for name in names),
            *(_ratio(row.slowdown(*methods)) for methods in compiled),
        ]
        for row in rows
    ]
    words = (
        "All **measured**, time of a step. The first is the engine's own choice, which is what "
        "stands everywhere else on this page."
    )
    drifts = [drift for row in rows for drift in row.drifts]
    if drifts:
        words += (
            f" Some were added to their case later; ARGS beside them took {min(drifts):.2f} to "
            f"{max(drifts):.2f} times what it had taken in the case."
        )
    return f"{words}\n\n" + _table(header, body)


def _parts(rows: list[Row]) -> str:
    names = [name for name in parts.NAMES if any(name in row.record["parts"] for row in rows)]
    header = [*NAMES, "step ms", *(f"{name}, %" for name in names), "busy / step"]
    body = []
    for row in rows:
        step = sum(row.record["parts"].values())
        shares = [100 * row.record["parts"].get(name, 0.0) / step for name in names]
        busy = row.record["profile"]["busy_seconds"] / step
        body.append([*_names(row), _ms(step), *(f"{x:.1f}" for x in shares), _ratio(busy)])
    return (
        "Shares of the **measured** step, by a profile of a few steps in which the whole batch "
        "decodes (`bench/parts.py`). On a GPU kernels count by the device's clock, from steps "
        "without CUDA graphs, and what they leave of the step (with graphs) is the host's, or "
        "nobody's; where they ran side by side and add up to more than the step (the last column "
        "is above 1), they are scaled to it. On a CPU the shares are those of the profiled "
        "steps.\n\n" + _table(header, body)
    )


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
                *(_added(row, name) for name in shown),
                f"{cache['rm_bytes_per_sequence'] / 2**20:.1f}",
                f"{cache['rm_bytes_of_k_copies'] / 2**20:.1f}",
            ]
        )
    return (
        "The prompt's time is that of a decode of one token. Peak memory is known of GPUs only.\n\n"
        + _table(header, body)
    )


def _added(row: Row, method: str) -> str:
    figures = row.record["methods"].get(method, {})
    peak, before = figures.get("peak_memory_bytes"), figures.get("memory_before_bytes")
    if peak is None or before is None:
        return DASH
    # The engine's caches are there before it decodes.
    own = row.record["cache"]["bytes"] if method == baselines.ARGS else 0
    return f"{(peak - before + own) / 2**20:.0f}"


def _peak(figures: dict[str, Any]) -> str:
    peak = figures.get("peak_memory_bytes")
    return DASH if peak is None else f"{peak / 2**30:.2f}"


def _speed(figures: dict[str, Any]) -> str:
    speed = figures.get("tokens_per_second")
    return DASH if speed is None else f"{speed:.3g}" if speed < 1000 else f"{speed:.0f}"


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
        if "parts_error" in row.record:
            lines.append(f"- {row.case.key}: where a step's time goes: {row.record['parts_error']}")
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
        "random ids; nothing ends early. All methods of a row ran in one process, "
        "but for those that were added later with ARGS beside them once more. A step is "
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
