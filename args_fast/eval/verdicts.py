"""What judgements add up to: win, tie, lose with intervals, agreement of both orders, cost."""

from collections.abc import Iterable
from typing import Any

CONFIDENCE = 0.95


def summarize(
    verdicts: Iterable[dict[str, Any]], price: tuple[float, float] | None = None
) -> dict[str, Any]:
    """The outcome of a judgement of two methods.

    A pair that was judged in both orders counts once, by the sum of its scores. A pair of which any
    judgement failed is left out and counted.

    Args:
        verdicts: records of ``judge``.
        price: dollars per million prompt tokens and per million completion tokens.

    Returns:
        win, tie, lose and win_or_tie, each with count, share and its 95% interval (Wilson); mean
        scores; agreement of the two orders; failures; what was spent.
    """
    records = list(verdicts)
    pairs: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        pairs.setdefault(record["index"], []).append(record)
    whole = [pair for pair in pairs.values() if not any("error" in record for record in pair)]
    margins = [sum(record["score"] - record["other"] for record in pair) for pair in whole]
    wins, losses = sum(m > 0 for m in margins), sum(m < 0 for m in margins)
    ties = len(margins) - wins - losses
    counts = {"win": wins, "tie": ties, "lose": losses, "win_or_tie": wins + ties}
    scored = [record for pair in whole for record in pair]
    return {
        "pairs": len(whole),
        "failed": len(pairs) - len(whole),
        **{name: _share(count, len(whole)) for name, count in counts.items()},
        "mean_score": _mean([record["score"] for record in scored]),
        "mean_other": _mean([record["other"] for record in scored]),
        "first_preferred": _first_preferred(scored),
        "agreement": _agreement(whole),
        "spent": _spent(records, price),
    }


def _share(count: int, total: int) -> dict[str, Any]:
    """A share of pairs with its Wilson interval."""
    from statsmodels.stats.proportion import proportion_confint

    if total == 0:
        return {"count": 0, "share": None, "low": None, "high": None}
    low, high = proportion_confint(count, total, alpha=1 - CONFIDENCE, method="wilson")
    return {"count": count, "share": count / total, "low": float(low), "high": float(high)}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _first_preferred(scored: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the answer that stood first won, of the judgements that were not ties: a judge
    without a bias for a place is at one half where the order is random."""
    decided = [record for record in scored if record["score"] != record["other"]]
    first_score = sum(
        (record["score"] > record["other"]) != record["swapped"] for record in decided
    )
    return _share(first_score, len(decided))


def _agreement(whole: list[list[dict[str, Any]]]) -> dict[str, Any] | None:
    """Of pairs judged in both orders, how many got the same verdict twice; None without such."""
    both = [pair for pair in whole if len(pair) == 2]
    if not both:
        return None
    same = sum(_sign(pair[0]) == _sign(pair[1]) for pair in both)
    return _share(same, len(both))


def _sign(record: dict[str, Any]) -> int:
    return (record["score"] > record["other"]) - (record["score"] < record["other"])


def _spent(records: list[dict[str, Any]], price: tuple[float, float] | None) -> dict[str, Any]:
    names = ("requests", "prompt_tokens", "completion_tokens")
    spent: dict[str, Any] = {name: sum(record[name] for record in records) for name in names}
    if price is not None:
        spent["dollars"] = (
            spent["prompt_tokens"] * price[0] + spent["completion_tokens"] * price[1]
        ) / 1e6
    return spent
