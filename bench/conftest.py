"""Prints the slowdown against greedy from the medians that pytest-benchmark collected."""

import torch
import transformers

from args_fast.bench.baselines import GREEDY, TRANSFORMERS
from args_fast.machine import processor


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    cases = {}
    for result in session.benchmarks if session else []:
        info = result.extra_info
        if result.stats.rounds and "prompt_length" in info:
            cases.setdefault(info["prompt_length"], {})[info["case"]] = (
                result.stats.median / info["new_tokens"],
                result.stats.iqr / info["new_tokens"],
                result.stats.rounds,
            )
    if not cases:
        return
    write = terminalreporter.write_line
    terminalreporter.section("slowdown")
    write(
        f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; float32, batch 1, random weights"
    )
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
