"""Time per token of each method, and the slowdown against greedy decoding.

One prompt at a time, the methods in turn on each prompt so that whatever else the machine does
hits all of them. A method's time for n tokens less its time for one token is the time of n - 1
steps: the prompt's own time drops out. End tokens are ignored, so that every response has n tokens.
A warm-up call comes before both.
"""

import json
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from args_fast.errors import ArgsError
from args_fast.eval.decode import Limits, decode
from args_fast.eval.methods import Method
from args_fast.eval.plan import Pairs, Report, Run
from args_fast.eval.records import write_json

if TYPE_CHECKING:
    from args_fast.decoder import ArgsDecoder

TOKENS = 32  # of a timed response, or fewer where the run's responses are shorter


def time_methods(run: Run, pairs: Pairs, report: Report) -> None:
    """Time the methods that have no times yet, all in one session, and write speed.json.

    Policies are left out: a language model of its own would have to be loaded next to the run's.
    """
    methods = [method for method in run.plan.methods if method.lm is None]
    keys = [method.key for method in methods]
    file = run.folder / "speed.json"
    if not run.plan.timing_prompts or not methods:
        return
    if file.exists() and set(keys) <= set(json.loads(file.read_text())["seconds_per_token"]):
        return
    settings = run.plan.settings
    decoder = pairs.get(settings.lm, settings.rm)
    tokens = max(2, min(TOKENS, settings.max_new_tokens))
    # The shortest prompts would flatter and the longest may not fit: those in the middle.
    order = sorted(run.items, key=lambda item: len(item.text))
    first_time = max(0, (len(order) - run.plan.timing_prompts) // 2)
    chosen = order[first_time : first_time + run.plan.timing_prompts]
    seconds: dict[str, list[float]] = {key: [] for key in keys}
    for number, item in enumerate(chosen):
        report("timing", number, len(chosen))
        for method in methods:
            value = _seconds_per_token(decoder, method, item.prompt, tokens)
            if value is not None:
                seconds[method.key].append(value)
    report("timing", len(chosen), len(chosen))
    record = {
        "tokens": tokens,
        "batch": 1,
        "device": str(decoder.device),
        "baseline": run.plan.baseline.key,
        "seconds_per_token": seconds,
    }
    write_json(file, record)


def _seconds_per_token(
    decoder: "ArgsDecoder", method: Method, prompt: Any, tokens: int
) -> float | None:
    """Seconds of one step, the prompt excluded; None where the prompt cannot be decoded."""
    try:
        _seconds(decoder, method, prompt, 2)
        single, many = (_seconds(decoder, method, prompt, count) for count in (1, tokens))
    except ArgsError:
        return None
    return max(0.0, many - single) / (tokens - 1)


def _seconds(decoder: "ArgsDecoder", method: Method, prompt: Any, tokens: int) -> float:
    began = time.perf_counter()
    ((_, response),) = decode(decoder, method, [(prompt, 0)], Limits(tokens, endless=True))
    if isinstance(response, ArgsError):
        raise response
    return time.perf_counter() - began


def summarize_speed(seconds: list[float], baseline: list[float]) -> dict[str, Any] | None:
    """Median time of a step over the prompts with its spread, and the slowdown likewise.

    Args:
        seconds: per token, of one method, one for each timed prompt.
        baseline: of the baseline, for the same prompts.
    """
    if not seconds or len(seconds) != len(baseline) or not all(baseline):
        return None
    ratios = [single / other for single, other in zip(seconds, baseline, strict=True)]
    return {
        "milliseconds_per_token": _spread([1000 * value for value in seconds]),
        "slowdown": _spread(ratios),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}
