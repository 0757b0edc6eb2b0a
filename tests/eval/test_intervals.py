"""Means and BCa intervals, and what happens where there is too little to tell."""

import numpy
import pytest
from scipy.stats import bootstrap

from args_fast.errors import EvaluationError
from args_fast.eval import intervals
from args_fast.eval.intervals import gain_interval, mean_interval, require

VALUES = numpy.random.default_rng(0).gamma(2, size=40).tolist()


def test_the_interval_is_scipys():
    found = mean_interval(VALUES, seed=5)
    expected = bootstrap(
        (VALUES,),
        numpy.mean,
        n_resamples=intervals.RESAMPLES,
        method="BCa",
        batch=1000,
        rng=numpy.random.default_rng(5),
    )
    assert found.mean == pytest.approx(numpy.mean(VALUES))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval))
    assert found.low < found.mean < found.high
    assert found.count == 40


def test_the_seed_decides():
    assert mean_interval(VALUES, 1) == mean_interval(VALUES, 1)
    assert mean_interval(VALUES, 1) != mean_interval(VALUES, 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None, None, 0)),
        ([2.0], (2.0, None, None, 1)),
        ([2.0, 2.0, 2.0], (2.0, 2.0, 2.0, 3)),
    ],
)
def test_too_little_to_tell(values, expected):
    found = mean_interval(values, 0)
    assert (found.mean, found.low, found.high, found.count) == expected


def test_two_values_give_no_nan():
    found = mean_interval([1.0, 2.0], 0)
    assert found.mean == 1.5
    assert all(end is None or 1 <= end <= 2 for end in (found.low, found.high))


def test_gains_are_paired_by_prompt():
    """A gain of 1 for each prompt is known for certain, however much the prompts differ."""
    baseline = dict(enumerate(VALUES))
    better = {index: value + 1 for index, value in baseline.items()}
    found = gain_interval(better, baseline, 0)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))


def test_gains_are_over_shared_prompts():
    found = gain_interval({0: 1.0, 1: 5.0, 2: 2.0}, {0: 0.0, 2: 0.0, 3: 9.0}, 0)
    assert (found.mean, found.count) == (1.5, 2)


def test_require_names_what_to_install():
    require("numpy")
    with pytest.raises(
        EvaluationError, match=r"needs no_such_package.*pip install 'args-fast\[eval"
    ):
        require("numpy", "no_such_package")
