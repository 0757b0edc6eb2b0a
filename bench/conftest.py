"""What the suites of pytest-benchmark share."""

from collections.abc import Iterator
from typing import Any

import pytest

from args_fast import ArgsDecoder
from args_fast.bench.cases import SIZE
from args_fast.bench.models import random_pair


@pytest.fixture(scope="module")
def pair() -> ArgsDecoder:
    """Two models of the size that is measured."""
    return random_pair(SIZE, SIZE)


@pytest.fixture
def speed(benchmark: Any, capsys: pytest.CaptureFixture) -> Iterator[None]:
    """Prints tokens per second; the test says how many tokens a round has, and of what group it is,
    whose table (pytest-benchmark's) has the ratios."""
    yield
    if benchmark.stats:
        rate = benchmark.extra_info["tokens"] / benchmark.stats.stats.median
        with capsys.disabled():
            print(f"\n{benchmark.group}, {benchmark.extra_info['way']}: {rate:.1f} tokens/s")
