"""What a set of cases will take on a device that need not be here: computed, never measured."""

from collections.abc import Iterator, Sequence

import torch

from args_fast.bench import baselines, roofline
from args_fast.bench.cases import Case
from args_fast.bench.runner import estimate


def plan(cases: Sequence[Case], name: str) -> str:
    """A table of cases with their floors and the seconds that they may take, one under the other.

    Args:
        name: in ``roofline.DEVICES``.
    """
    device = roofline.DEVICES[name]
    lines = [
        f"Computed for {device.name} ({device.source}: {device.bandwidth / 1e9:.0f} GB/s, "
        f"{', '.join(f'{peak / 1e12:g} TFLOP/s {dtype}' for dtype, peak in device.peak.items())}).",
        "Nothing here was measured. Seconds are guesses, good to a factor; a run corrects them by "
        "what its cases took.",
        "",
        "| case | methods | greedy floor ms | ARGS floor ms | slowdown floor | seconds | in all |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = 0.0
    for case, missing, seconds in planned(cases, name):
        total += seconds
        floor = case.floor(device)
        lines.append(
            f"| {case.key} | {_words(missing, adding=missing != case.methods)} "
            f"| {floor.greedy_seconds * 1e3:.3f} | {floor.step_seconds * 1e3:.3f} "
            f"| {floor.slowdown:.3f} | {seconds:.0f} | {total:.0f} |"
        )
    return "\n".join(lines)


def planned(cases: Sequence[Case], name: str) -> Iterator[tuple[Case, tuple[str, ...], float]]:
    """Each case with those of its methods that none before it has measured, and the seconds that
    they may take on a device of ``roofline.DEVICES``."""
    device = roofline.DEVICES[name]
    machine = {"bandwidth": device.bandwidth, "peak": device.peak}
    done: dict[str, set[str]] = {}
    for case in cases:
        before = done.setdefault(case.key, set())
        missing = tuple(method for method in case.methods if method not in before)
        yield case, missing, estimate(case, missing, torch.device("cuda"), machine)
        before.update(missing)


def _words(methods: Sequence[str], *, adding: bool) -> str:
    if adding:
        return f"+ {', '.join(methods)}"
    left_out = [name for name in baselines.METHODS if name not in methods]
    if len(left_out) < len(methods):
        return f"all but {', '.join(left_out)}" if left_out else "all"
    return ", ".join(methods)
