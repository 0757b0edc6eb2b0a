"""Prints what the medians that pytest-benchmark collected say: slowdown, throughput."""

import torch
import transformers

from args_fast.bench.baselines import GREEDY, TRANSFORMERS
from args_fast.machine import processor


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    results = [result for result in session.benchmarks if result.stats.rounds] if session else []
    slowdown(terminalreporter, [r for r in results if "prompt_length" in r.extra_info])
    throughput(terminalreporter, [r for r in results if "throughput" in r.extra_info])


def heading(reporter, title, more):
    reporter.section(title)
    reporter.write_line(
        f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; float32, random weights, {more}"
    )


def throughput(reporter, results):
    if not results:
        return
    cases = {}
    for result in results:
        info = result.extra_info
        speed = info["tokens"] / result.stats.median
        cases.setdefault(info["throughput"], {})[info["together"]] = speed
    heading(reporter, "throughput", f"{results[0].extra_info['requests']} requests")
    reporter.write_line(f"{'tokens/s':22} {'alone':>9} {'together':>9} {'ratio':>7}")
    for name, speed in cases.items():
        alone, together = speed.get(False), speed.get(True)
        ratio = f"{together / alone:.2f}" if alone and together else "-"
        shown = (f"{value:.1f}" if value else "-" for value in (alone, together))
        reporter.write_line(f"{name:22} {next(shown):>9} {next(shown):>9} {ratio:>7}")


def slowdown(reporter, results):
    if not results:
        return
    cases = {}
    for result in results:
        info = result.extra_info
        cases.setdefault(info["prompt_length"], {})[info["case"]] = (
            result.stats.median / info["new_tokens"],
            result.stats.iqr / info["new_tokens"],
            result.stats.rounds,
        )
    write = reporter.write_line
    heading(reporter, "slowdown", "batch 1")
    write("ms: per new token, the prompt's time included; median and IQR of the rounds")
    write(
        f"{'prompt':>6}  {'':22} {'rounds':>6} {'ms':>9} {'IQR':>7} "
        f"{'x transformers':>15} {'x own':>7}"
    )
    for length, measured in sorted(cases.items()):
        for name, (median, iqr, rounds) in measured.items():
            ratios = [
                f"{median / measured[base][0]:.2f}" if base in measured else "-"
                for base in (TRANSFORMERS, GREEDY)
            ]
            write(
                f"{length:>6}  {name:22} {rounds:>6} {median * 1e3:9.1f} {iqr * 1e3:7.1f} "
                f"{ratios[0]:>15} {ratios[1]:>7}"
            )
