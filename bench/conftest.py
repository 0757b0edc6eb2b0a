"""The pair of the suites, and the table of throughput from the times that they took."""

from collections import defaultdict
from typing import Any

import pytest
import torch

from args_fast import ArgsDecoder
from args_fast.bench.cases import SIZE
from args_fast.bench.models import random_pair
from args_fast.bench.slowdown import as_markdown
from args_fast.bench.timing import describe, environment


@pytest.fixture(scope="module")
def pair() -> ArgsDecoder:
    """Two models of the size that is measured."""
    return random_pair(SIZE, SIZE)


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    results = [result for result in session.benchmarks if result.stats.rounds] if session else []
    requests = [result for result in results if "throughput" in result.extra_info]
    if requests:
        terminalreporter.section("several requests")
        terminalreporter.write_line(describe(environment(torch.device("cpu"))))
        terminalreporter.write_line(as_markdown(throughput(requests)))


def throughput(results: list[Any]) -> list[list[str]]:
    """Tokens per second of every workload by each way to serve it, the first way of it as 1."""
    speeds: dict[str, dict[str, float]] = defaultdict(dict)
    for result in results:
        info = result.extra_info
        speeds[info["throughput"]][info["way"]] = info["tokens"] / result.stats.median
    ways = list(dict.fromkeys(way for speed in speeds.values() for way in speed))
    rows = [["tokens/s", *ways]]
    for workload, speed in speeds.items():
        base = next(iter(speed.values()))
        cells = [
            f"{speed[way]:.1f} ({speed[way] / base:.2f})" if way in speed else "" for way in ways
        ]
        rows.append([workload, *cells])
    return rows
