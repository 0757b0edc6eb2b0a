"""Pictures of a sweep and of a choice of w, as PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from args_fast.eval.measure import COHERENCE, REWARD, judge_measure
from args_fast.eval.results import PERPLEXITY

ENDINGS = (".png", ".svg")
TITLES = {
    REWARD: "average reward",
    "diversity": "diversity",
    COHERENCE: "coherence",
    PERPLEXITY: "perplexity",
}
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#9a6700", "#57606a")
MARKERS = "osD^vP"
JUDGE = judge_measure("")

Points = Sequence[dict[str, Any]]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "args-fast",  # the same numbers give the same file
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "font.size": 10,
        }
    )
    from matplotlib import pyplot

    return pyplot


def figure2(points: Points, folder: Path) -> list[Path]:
    """Reward, by every judge too, diversity and coherence against w, a line for each k and one for
    greedy."""
    pyplot = _pyplot()
    judges = [name for name in points[0] if name.startswith(JUDGE)]
    names = [n for n in (REWARD, "diversity", COHERENCE, *judges) if any(p[n] for p in points)]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (4.2 * columns, 3.4 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for spare in axes.flat[len(names) :]:
        spare.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for place, k in enumerate(_ks(points)):
            line = [p for p in points if p["k"] == k and p[name]]
            _draw(axis, [p["w"] for p in line], [p[name] for p in line], place, f"k = {k}")
        greedy = next(p for p in points if p["w"] == 0)[name]
        axis.axhline(greedy["mean"], color="#57606a", linestyle="--", linewidth=1, label="greedy")
        title = TITLES.get(name, f"reward by {name.removeprefix(JUDGE)}")
        axis.set(xlabel="w", title=title)
        _spread_weights(axis, sorted({p["w"] for p in points}))
    axes[0][0].legend(frameon=False)
    return _save(figure, folder, "figure2")


def front(points: Points, folder: Path) -> list[Path]:
    """Reward against perplexity: what guidance costs in likelihood; each point names its w."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(5.2, 3.8))
    for place, k in enumerate(_ks(points)):
        line = [p for p in points if p["k"] == k and p[REWARD] and p[PERPLEXITY]]
        x, y = ([p[name]["mean"] for p in line] for name in (PERPLEXITY, REWARD))
        axis.plot(x, y, color=_colour(place), marker=_marker(place), linewidth=1, label=f"k = {k}")
        for point, *position in zip(line, x, y, strict=True):
            axis.annotate(
                f"{point['w']:g}", position, textcoords="offset points", xytext=(4, 4), size=8
            )
    axis.set(xlabel="perplexity under the language model", ylabel="average reward")
    axis.set_title("reward against perplexity (numbers: w)")
    _spread_perplexity(axis, [p[PERPLEXITY]["mean"] for p in points if p[PERPLEXITY]])
    axis.legend(frameon=False)
    return _save(figure, folder, "front")


def slowdown(points: Points, folder: Path) -> list[Path]:
    """Slowdown against k, with the spread over the timed prompts; one point for each w and k."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(4.6, 3.4))
    timed = [p for p in points if p["slowdown"] and p["w"] != 0]
    middle = [p["slowdown"]["mean"] for p in timed]
    down = [p["slowdown"]["mean"] - p["slowdown"]["low"] for p in timed]
    up = [p["slowdown"]["high"] - p["slowdown"]["mean"] for p in timed]
    axis.errorbar(
        [p["k"] for p in timed], middle, yerr=[down, up], fmt="o", color=COLOURS[0], capsize=3
    )
    axis.axhline(1, color="#57606a", linestyle="--", linewidth=1)
    axis.set(xlabel="k", ylabel="times greedy decoding", title="time per token", ylim=(0, None))
    return _save(figure, folder, "slowdown")


def prices(curve: Points, chosen: Points, file: Path) -> list[Path]:
    """What each w changes and gains, and what it costs; the points of ``chosen`` are marked."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    w = [point["w"] for point in curve]
    for place, (name, label) in enumerate(
        [("changed", "steps changed"), ("gain", "of the reward to be gained")]
    ):
        shares = [100 * point[name] for point in curve]
        left.plot(w, shares, color=_colour(place), label=label)
    left.set(xscale="log", xlabel="w", ylabel="%", ylim=(0, 100), title="what w does")
    left.legend(frameon=True, edgecolor="none", framealpha=0.9)
    right.plot(w, [point["price"] for point in curve], color=COLOURS[0])
    right.set(xscale="log", xlabel="w", ylabel="times perplexity", title="what w costs")
    for axis in (left, right):
        for point in chosen:
            axis.axvline(point["w"], color=COLOURS[5], linestyle="--", linewidth=1)
            label = f" {point['w']:.2g}"
            axis.annotate(label, (point["w"], axis.get_ylim()[1]), size=8, va="top")
    return _save(figure, file.parent, file.name)


def _spread_weights(axis: Any, values: Sequence[float]) -> None:
    """Where the largest w is many times the smallest: each at its logarithm, with its number, and 0
    at a little distance."""
    above = [value for value in values if value > 0]
    if above and above[-1] > 8 * above[0]:
        axis.set_xscale("symlog", base=2, linthresh=above[0], linscale=0.7)
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
        axis.set_xlim(values[0] - above[0] / 4, above[-1] * 1.2)


def _spread_perplexity(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis, with numbers at 1, 2 and 5, where one value is many times another."""
    from matplotlib import ticker

    if values and max(values) > 5 * min(values):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.minorticks_off()


def _ks(points: Points) -> list[int]:
    return sorted({point["k"] for point in points})


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _marker(place: int) -> str:
    return MARKERS[place % len(MARKERS)]


def _draw(axis: Any, x: list[float], values: list[dict[str, Any]], place: int, label: str) -> None:
    """A line with its intervals as a band."""
    mean = [value["mean"] for value in values]
    axis.plot(x, mean, color=_colour(place), marker=_marker(place), linewidth=1.5, label=label)
    low = [value["mean"] if value["low"] is None else value["low"] for value in values]
    high = [value["mean"] if value["high"] is None else value["high"] for value in values]
    axis.fill_between(x, low, high, color=_colour(place), alpha=0.12, linewidth=0)


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    figure.tight_layout()
    files = [folder / f"{name}{ending}" for ending in ENDINGS]
    for file in files:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    _pyplot().close(figure)
    return files
