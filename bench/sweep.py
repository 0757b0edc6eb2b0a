"""The slowdown over many settings at true sizes, within a budget of time: `make gpu-bench`.

    python -m args_fast.bench.sweep --set A --budget 540
    python -m args_fast.bench.sweep --set cpu         # OPT-125M and 1.3B, half an hour
    python -m args_fast.bench.sweep --rehearse        # every case in miniature, on the CPU

The most wanted cases come first. What is finished is written after every case, and the same command
continues with what is left: after a kill, a lost device, or when the budget was over. Results are
written to bench/results/<device>/slowdown-<date>-<commit>.json and .md, and to $OUT.
"""

import gc
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from args_fast import ArgsDecoder
from args_fast.bench import cases, models, results, slowdown, traffic
from args_fast.bench.baselines.engine import cache_bytes
from args_fast.bench.cases import Case
from args_fast.bench.slowdown import say
from args_fast.bench.timing import copy_bandwidth, describe, read_bandwidth, synchronise


def sweep(
    settings: Sequence[Case],
    file: Path,
    document: dict[str, Any],
    device: torch.device,
    *,
    budget: float = math.inf,
    rounds: int = 5,
) -> list[Case]:
    """Measure the cases that the document does not hold yet, and return those that are left. The
    file is written after each. None is begun unless as much of the budget, in seconds, is left as
    the longest one took so far.

    Raises:
        RuntimeError: The device does not answer any more; what is finished is written.
    """
    began = time.monotonic()
    left = [case for case in settings if case.key not in document["cases"]]
    if left and document["bandwidth"] is None:
        document["bandwidth"] = read_bandwidth(device)
        document["copy_bandwidth"] = copy_bandwidth(device)
    while left:
        longest = max((record["seconds"] for record in document["cases"].values()), default=0.0)
        if time.monotonic() - began + longest > budget:
            break
        say(f"{len(left)} left: {left[0].key}")
        document["cases"][left[0].key] = _measure(left[0], device, rounds)
        results.write(file, document, markdown(document))
        left = left[1:]
        # After an illegal access every later call fails: the next process continues.
        synchronise(device)
    return left


def _measure(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    began = time.monotonic()
    torch.compiler.reset()  # compiled steps of earlier cases count against a limit of shapes
    gc.collect()
    try:
        methods = slowdown.measure_case(build(case, device), case, rounds=rounds)
    except torch.OutOfMemoryError as error:  # the models do not fit
        methods = {name: {"error": slowdown.first_line(error)} for name in case.methods}
    say(slowdown.headline(methods))
    seconds = round(time.monotonic() - began, 1)
    return {"case": asdict(case), "methods": methods, "seconds": seconds}


def build(case: Case, device: torch.device) -> ArgsDecoder:
    """The case's pair with random weights, and a cache for its prompts alone: the rest of the
    device is for the other methods."""
    dtype = case.torch_dtype
    lm = models.language_model(case.lm, "meta", dtype)
    rm = models.reward_model(case.rm, "meta", dtype)
    per_token = traffic.cached_bytes(lm) + traffic.cached_bytes(rm)
    room = cache_bytes(per_token, batch=case.batch, tokens=case.prompt + case.new_tokens)
    return models.random_pair(case.lm, case.rm, device=device, dtype=dtype, cache_bytes=room)


def failures(document: dict[str, Any]) -> list[str]:
    """A line for every method that failed. That something does not fit into memory is a result; a
    step that was not captured as a graph, say, is not."""
    return [
        f"{key}: {line}"
        for key, record in document["cases"].items()
        for line in slowdown.failures(record["methods"])
        if torch.OutOfMemoryError.__name__ not in line
    ]


def markdown(document: dict[str, Any]) -> str:
    """The document as a page: a table for every case."""
    lines = ["# Slowdown", "", describe(document["environment"]) + ".", ""]
    lines += [slowdown.DEFINITION, "The methods of a case took turns, in one process."]
    if document["bandwidth"]:
        read, copied = (document[name] / 1e9 for name in ("bandwidth", "copy_bandwidth"))
        lines += [f"A plain read reaches {read:.0f} GB/s here, a copy {copied:.0f}."]
    for record in document["cases"].values():
        case = Case(**record["case"] | {"methods": tuple(record["case"]["methods"])})
        lines += ["", f"## {case.name}", "", slowdown.headline(record["methods"]) + ".", ""]
        lines += slowdown.shown(record["methods"], document["bandwidth"])
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = results.parser(__doc__)
    parser.add_argument("--set", default="all", choices=cases.SETS, help="which cases (all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds (no limit)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny models, one case of each size"
    )
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    device = torch.device(options.device)
    settings = cases.SETS[options.set]
    if options.rehearse:
        small = [cases.tiny(case) for case in settings]
        settings = [case for case in dict.fromkeys(small) if case.methods]
    kind = "slowdown-rehearsed" if options.rehearse else "slowdown"
    empty: dict[str, Any] = {"bandwidth": None, "copy_bandwidth": None, "cases": {}}
    file, document = results.begin(options.results, kind, device, **empty)
    left = sweep(settings, file, document, device, budget=options.budget, rounds=options.rounds)
    if left:
        say(f"{len(left)} of {len(settings)} cases are left: run the same command again")
    wrong = failures(document)
    for line in wrong:
        print(f"WRONG  {line}")
    print(file.with_suffix(".md"))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
