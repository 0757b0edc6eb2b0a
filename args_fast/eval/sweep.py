"""ARGS over a grid of w and k: the paper's Figure 2, the front of reward and perplexity, the cost.

All cells are methods of one run, so one greedy decode is shared: it is the point w = 0 of every k.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

from args_fast.errors import EvaluationError
from args_fast.eval.measure import COHERENCE, REWARD
from args_fast.eval.methods import Method, parse
from args_fast.eval.results import PERPLEXITY

SHOWN = (REWARD, "diversity", COHERENCE, PERPLEXITY)
PARTS = ("mean", "low", "high")


def grid(weights: Sequence[float], ks: Sequence[int], temperature: float | None) -> list[Method]:
    """Greedy decoding and one ARGS method for each cell.

    Args:
        weights: values of w; 0 is greedy decoding and always part of a sweep.
        ks: values of k; 2 or more.
        temperature: None for ARGS-greedy, else ARGS-stochastic's.

    Raises:
        EvaluationError: there is no cell, or k is 1, which is greedy decoding for every w.
    """
    if not any(weights) or not ks:
        raise EvaluationError("a sweep needs at least one w other than 0, and at least one k")
    if 1 in ks:
        raise EvaluationError("k = 1 is greedy decoding for every w; name larger ones")
    kind = "args-greedy" if temperature is None else "args-stochastic"
    more = {} if temperature is None else {"temperature": temperature}
    cells = [{"w": w, "k": k, **more} for k in dict.fromkeys(ks) for w in dict.fromkeys(weights)]
    return [parse("greedy"), *(parse({kind: cell}) for cell in cells if cell["w"] != 0)]


def points(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One point for each cell, and w = 0 for each k: w, k, and each measure with its interval.

    A measure that was not taken is None.
    """
    greedy, *cells = results["methods"]
    ks = list(dict.fromkeys(cell["options"]["k"] for cell in cells))
    outcome = [_point(greedy, 0.0, k) for k in ks]
    outcome += [_point(cell, cell["options"]["w"], cell["options"]["k"]) for cell in cells]
    return sorted(outcome, key=lambda point: (point["k"], point["w"]))


def _point(method: dict[str, Any], w: float, k: int) -> dict[str, Any]:
    point: dict[str, Any] = {"k": k, "w": w}
    for name in (*SHOWN, *(n for n in method["measures"] if n.startswith("judge:"))):
        value = method["measures"].get(name)
        taken = value is not None and value["mean"] is not None
        point[name] = {part: value[part] for part in PARTS} if taken and value else None
    slowdown = (method["speed"] or {}).get("slowdown")
    point["slowdown"] = slowdown and {
        "mean": slowdown["median"],
        "low": slowdown["low"],
        "high": slowdown["high"],
    }
    return point


def comma_separated(outcome: list[dict[str, Any]]) -> str:
    """The points as CSV, intervals in columns of their own."""
    names = [name for name in outcome[0] if name not in ("k", "w")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["k", "w", *(f"{n}{_suffix(part)}" for n in names for part in PARTS)])
    for point in outcome:
        values = ((point[name] or {}).get(part, "") for name in names for part in PARTS)
        writer.writerow([point["k"], point["w"], *values])
    return out.getvalue()


def _suffix(part: str) -> str:
    return "" if part == "mean" else f"_{part}"
