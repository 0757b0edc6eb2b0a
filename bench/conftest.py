"""Prints the slowdown against greedy from the medians that pytest-benchmark collected."""

import torch
import transformers

from args_fast.machine import processor


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    cases = {}
    for result in session.benchmarks if session else []:
        info = result.extra_info
        if result.stats.rounds and "prompt_length" in info:
            cases.setdefault(info["prompt_length"], {})[info["case"]] = result.stats
    if not cases:
        return
    write = terminalreporter.write_line
    terminalreporter.section("slowdown")
    write(
        f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; float32, batch 1, random weights"
    )
    write(
        f"{'prompt':>6}  {'':22} {'median s':>9} {'IQR s':>7} {'x transformers':>15} {'x own':>7}"
    )
    for length, stats in sorted(cases.items()):
        for name, stat in stats.items():
            ratios = [
                f"{stat.median / stats[base].median:.2f}" if base in stats else "-"
                for base in ("transformers greedy", "args-fast greedy")
            ]
            write(
                f"{length:>6}  {name:22} {stat.median:9.3f} {stat.iqr:7.3f} "
                f"{ratios[0]:>15} {ratios[1]:>7}"
            )
