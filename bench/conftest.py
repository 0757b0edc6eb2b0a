"""Prints what the times that pytest-benchmark collected say: slowdown, throughput."""

from collections import defaultdict
from typing import Any

import torch

from args_fast.bench import baselines, slowdown
from args_fast.bench.cases import SIZE
from args_fast.bench.models import language_model, reward_model
from args_fast.bench.timing import describe, environment, read_bandwidth
from args_fast.bench.traffic import step_bytes

CPU = torch.device("cpu")


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    results = [result for result in session.benchmarks if result.stats.rounds] if session else []
    write = terminalreporter.write_line
    decodes = [result for result in results if "part" in result.extra_info]
    requests = [result for result in results if "throughput" in result.extra_info]
    if decodes or requests:
        terminalreporter.section("what the times say")
        write(describe(environment(CPU)))
    if decodes:
        bandwidth = read_bandwidth(CPU)
        write(
            f"{slowdown.DEFINITION} That is {bandwidth / 1e9:.1f} GB/s here. "
            "One method after the other; `args-fast bench` lets them take turns."
        )
        for prompt, methods in steps(decodes).items():
            write(f"\nprompt {prompt}: {slowdown.headline(methods)}")
            greedies = [name for name in methods if name in baselines.GREEDIES]
            write(slowdown.as_markdown(slowdown.table(methods, greedies, bandwidth)))
    if requests:
        write("\nseveral requests")
        write(slowdown.as_markdown(throughput(requests)))


def steps(results: list[Any]) -> dict[int, dict[str, slowdown.Figures]]:
    """Prompt length -> the figures of every method of which both parts were measured."""
    times: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(dict)
    counts: dict[str, int] = {}
    for result in results:
        info = result.extra_info
        times[info["prompt"], info["method"]][info["part"]] = result.stats.data
        counts[info["method"]] = info["new_tokens"]
    models = language_model(SIZE, "meta"), reward_model(SIZE, "meta")
    figures: dict[int, dict[str, slowdown.Figures]] = defaultdict(dict)
    for (prompt, method), parts in sorted(times.items(), key=lambda item: item[0][0]):
        if {"whole", "first"} <= parts.keys():
            read = models[:1] if method in baselines.GREEDIES else models
            figures[prompt][method] = slowdown.figures(
                list(zip(parts["whole"], parts["first"], strict=False)),
                counts[method],
                bytes_read=step_bytes(*read, prefix=prompt + counts[method] // 2),
            )
    return figures


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
