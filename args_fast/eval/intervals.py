"""Means with 95% intervals over prompts, by the bias-corrected accelerated bootstrap (BCa)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from args_fast.errors import EvaluationError

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes:
        mean: of the values; None where there are none.
        low, high: the ends of the interval; None where there are fewer than two values.
        count: how many values there are.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def require(*packages: str) -> None:
    """Raises EvaluationError where a package of the extra "eval" is missing."""
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise EvaluationError(
            f"this needs {', '.join(missing)}, which is not installed: pip install "
            "'args-fast[eval]'"
        )


def mean_interval(values: Sequence[float], seed: int) -> Interval:
    """The mean of values, one for each prompt, and its interval."""
    import numpy
    from scipy.stats import bootstrap

    if not values:
        return Interval(None, None, None, 0)
    data = numpy.asarray(values, dtype=float)
    mean = float(data.mean())
    if len(data) < 2:
        return Interval(mean, None, None, len(data))
    # Every resample of equal values is the same, and BCa divides by their spread. Differences of
    # floats that are equal on paper are a few bits apart.
    if numpy.ptp(data) <= 1e-9 * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, len(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few values: the interval is NaN then, and None
        interval = bootstrap(
            (data,),
            numpy.mean,
            n_resamples=RESAMPLES,
            batch=1000,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=numpy.random.default_rng(seed),
        ).confidence_interval
    ends = [float(end) if numpy.isfinite(end) else None for end in interval]
    return Interval(mean, ends[0], ends[1], len(data))


def gain_interval(
    values: Mapping[int, float], baseline: Mapping[int, float], seed: int
) -> Interval:
    """The mean difference between two methods over the prompts that both answered, paired."""
    shared = sorted(values.keys() & baseline.keys())
    return mean_interval([values[index] - baseline[index] for index in shared], seed)
