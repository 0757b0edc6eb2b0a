"""The report's pictures: PNG, from rows of results. Measured is solid, computed is dashed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.figure import Figure

from args_fast.bench import baselines
from args_fast.bench import parts as parts_of
from args_fast.bench.cases import Case
from args_fast.bench.timing import slug

if TYPE_CHECKING:
    from args_fast.bench.report import Row


class Per(NamedTuple):
    """What a slope is told for: ``count`` of the axis, in words."""

    count: int
    name: str


class Axis(NamedTuple):
    title: str
    label: str
    per: Per
    scale: str


AXES = {
    "k": Axis("candidates", "candidates per step, k", Per(1, "one more candidate"), "linear"),
    "prompt": Axis(
        "prompt length", "prompt length (tokens)", Per(1000, "1000 more tokens of prompt"), "linear"
    ),
    "batch": Axis("batch size", "batch size (prompts)", Per(1, "one more prompt"), "log"),
}
COLOURS = ("#1f6fb4", "#c4541a", "#3c8d4f")
GREY = "#666666"
MOST = 24  # bars of a picture
PARTS = dict(
    zip(
        parts_of.NAMES,
        ("#1f6fb4", "#e08a2b", "#9ecae1", "#3c8d4f", "#c0392b", "#7b52ab", "#8c6d5a", "#d0d0d0"),
        strict=True,
    )
)


def label(case: Case, axis: str) -> str:
    """The case in words, without what the axis shows."""
    shown = ", ".join(f"{name} {getattr(case, name)}" for name in AXES if name != axis)
    return f"{case.lm} + {case.rm}, {shown}, {case.dtype}"


def slowdown(series: Sequence[Sequence["Row"]], axis: str, device: str, folder: Path) -> str:
    """The slowdown against both greedy decodings along one axis, one colour per series."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    plot = figure.add_subplot()
    for colour, rows in zip(COLOURS, series, strict=False):
        x = [getattr(row.case, axis) for row in rows]
        y = [row.slowdown() or 0.0 for row in rows]
        name = "ARGS" if len(series) == 1 else label(rows[0].case, axis)
        words = f"{name} / transformers greedy, measured"
        look = {"color": colour, "marker": "o", "capsize": 3, "label": words}
        plot.errorbar(x, y, yerr=_bars(rows), **look)
        own = [row.slowdown(against=baselines.GREEDY) for row in rows]
        light = colour if len(series) > 1 else COLOURS[2]
        _line(plot, x, own, light, "ARGS / args-fast greedy, measured", ":", "s")
        copies = [row.slowdown(baselines.K_COPIES) for row in rows]
        _line(plot, x, copies, GREY, "k-copies cache / transformers greedy, measured", "-", "^")
        floors = [row.floor.slowdown for row in rows]
        _line(plot, x, floors, colour, "floor, computed", "--", "")
    plot.axhline(1, color="black", linewidth=0.8)
    plot.set_xlabel(AXES[axis].label)
    plot.set_ylabel("slowdown of a step (x)")
    plot.set_xscale(AXES[axis].scale, **({"base": 2} if AXES[axis].scale == "log" else {}))
    ticks = sorted({getattr(row.case, axis) for rows in series for row in rows})
    plot.set_xticks(ticks, [str(tick) for tick in ticks])
    plot.minorticks_off()
    plot.set_ylim(bottom=0)
    plot.grid(alpha=0.25)
    _titles(figure, plot, device, [label(series[0][0].case, axis)] if len(series) == 1 else [])
    return _save(figure, folder, f"{slug(device)}-slowdown-by-{axis}", f"Slowdown by {axis}")


def roofline(rows: Sequence["Row"], device: str, folder: Path) -> str:
    """The computed floor over the measured time, of greedy decoding and of ARGS."""
    rows = [row for row in rows if row.step(baselines.ARGS)][:MOST]
    if not rows:
        return ""
    figure = Figure(figsize=(7.2, 1.6 + 0.5 * len(rows)), layout="constrained")
    plot = figure.add_subplot()
    kinds = (
        (baselines.ARGS, "ARGS", COLOURS[0]),
        (baselines.GREEDY, "args-fast greedy", COLOURS[2]),
        (baselines.TRANSFORMERS, "transformers greedy", GREY),
    )
    for offset, (method, name, colour) in enumerate(kinds):
        places, fractions = [], []
        for place, row in enumerate(rows):
            step, floor = row.step(method), row.floor
            least = floor.step_seconds if method == baselines.ARGS else floor.greedy_seconds
            if step:
                places.append(place + (offset - 1) * 0.26)
                fractions.append(100 * least / step)
        plot.barh(places, fractions, height=0.24, color=colour, label=name)
    plot.set_yticks(range(len(rows)), [_short(row.case) for row in rows])
    plot.set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    plot.axvline(100, color="black", linestyle="--", linewidth=1, label="floor, computed")
    plot.set_xlabel("computed floor / measured time of a step (%)")
    plot.grid(alpha=0.25, axis="x")
    _titles(figure, plot, device, ["fraction of the roofline reached"])
    return _save(figure, folder, f"{slug(device)}-roofline", "Fraction of the roofline")


def parts(rows: Sequence["Row"], device: str, folder: Path) -> str:
    """Where the time of a step goes: record["parts"], seconds by name."""
    rows = [row for row in rows if "parts" in row.record][:MOST]
    figure = Figure(figsize=(7.2, 1.8 + 0.5 * len(rows)), layout="constrained")
    plot = figure.add_subplot()
    names = {name for row in rows for name in row.record["parts"]}
    left = [0.0] * len(rows)
    for name in [*(n for n in PARTS if n in names), *sorted(names - PARTS.keys())]:
        widths = [row.record["parts"].get(name, 0.0) * 1e3 for row in rows]
        colour = PARTS.get(name)
        plot.barh(range(len(rows)), widths, left=left, height=0.6, label=name, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    plot.set_yticks(range(len(rows)), [_short(row.case) for row in rows])
    plot.set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    plot.set_xlabel("time of a step, measured (ms)")
    plot.grid(alpha=0.25, axis="x")
    plot.set_axisbelow(True)
    _titles(figure, plot, device, ["where a step of ARGS goes, measured"], columns=4)
    return _save(figure, folder, f"{slug(device)}-parts", "Where a step's time goes")


def _short(case: Case) -> str:
    return f"{case.lm} + {case.rm}\nk {case.k}, prompt {case.prompt}, batch {case.batch}"


def _bars(rows: Sequence["Row"]) -> list[list[float]]:
    """Distances from ARGS' median to its quartiles, as slowdowns."""
    below, above = [], []
    for row in rows:
        base, step = row.step(baselines.TRANSFORMERS), row.step(baselines.ARGS)
        low, high = row.spread() or (step, step)
        below.append(max(0.0, (step - low) / base))
        above.append(max(0.0, (high - step) / base))
    return [below, above]


def _line(
    plot: Any, x: list, y: Sequence[float | None], colour: str, name: str, style: str, marker: str
) -> None:
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if known:
        plot.plot(
            *zip(*known, strict=True), color=colour, linestyle=style, marker=marker, label=name
        )


def _titles(figure: Any, plot: Any, device: str, under: list[str], columns: int = 2) -> None:
    plot.set_title("\n".join([device, *under]), fontsize=9)
    handles, names = plot.get_legend_handles_labels()
    # One entry for a kind of line; those with error bars, which matplotlib puts last, come first.
    found = sorted(zip(names, handles, strict=True), key=lambda one: not hasattr(one[1], "lines"))
    unique = dict(found)
    figure.legend(
        unique.values(),
        unique.keys(),
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )


def _save(figure: Any, folder: Path, name: str, words: str) -> str:
    """Write the picture; returns the line that shows it."""
    figure.savefig(folder / f"{name}.png", dpi=150)
    return f"![{words}]({folder.name}/{name}.png)"
