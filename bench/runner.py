"""Runs cases: prefill and decoding timed apart, every method alike, nothing lost to a crash.

T(n) is the time of a decode of n new tokens, prompt included; T(1) is that of the prompt and the
first token. A step is then (T(n) - T(1)) / (n - 1), whatever the method does inside.
"""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch

from args_fast import ArgsDecoder
from args_fast.bench import baselines, models, parts, roofline
from args_fast.bench.baselines.engine import cache_bytes, free
from args_fast.bench.cases import Case
from args_fast.bench.results import Results
from args_fast.bench.timing import copy_bandwidth, measure

REPEATS = 5
SECONDS = {"cuda": 3.0, "cpu": 5.0}  # for the repeats of one method; three are made in any case
SLOW = (baselines.K_COPIES, baselines.NAIVE)
EAGER = (*SLOW, baselines.TRANSFORMERS)  # nothing is compiled or captured: one warm-up is enough
# A first guess at what takes time beside the floor, for budgets; corrected by what is measured.
LAYER_SECONDS = {"cuda": 0.5e-3, "cpu": 0.3e-3}  # per layer and forward pass: launches, overhead
REPLAYED = 0.1  # of that, where CUDA graphs are replayed
COMPILE_SECONDS = {"cuda": 1.25, "cpu": 1.0}  # per layer
PROFILED = 32  # new tokens at least, of the decode that is profiled
PROFILE_SECONDS = 3.0  # for making sense of a profile


@dataclass(frozen=True)
class Skipped:
    """A case that was not begun, and why."""

    case: Case
    why: str


class DeviceLostError(RuntimeError):
    """The device answers no more in this process; what is finished is written."""


def run(
    cases: Sequence[Case],
    results: Results,
    device: torch.device,
    *,
    again: bool = False,
    budget: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Skipped]:
    """Measure every case that ``results`` does not hold yet, and write after each method.

    Args:
        again: measure also what is there already.
        budget: seconds; no case is begun whose estimate is more than what is left of them.
        tell: gets a line of progress now and then.

    Returns:
        The cases that were not begun for want of time.

    Raises:
        DeviceLostError: after an error that leaves the device unusable; run again to go on.
    """
    began = time.perf_counter()
    _measure_machine(cases, results, device, tell)
    skipped, pair, measured = [], _Models(device), set[str]()
    ratio = _ratio(results)
    # A case that has died twice may be what kills the process: it waits for the others.
    cases = sorted(cases, key=lambda case: _attempts(case, results) > 1)
    for number, case in enumerate(cases, 1):
        label = f"[{number}/{len(cases)}] {case.key}"
        afresh = again and case.key not in measured
        missing = case.methods if afresh else results.missing(case)
        if not missing:
            tell(f"{label}: finished before")
            continue
        if len(missing) < len(case.methods):
            label += f" + {' + '.join(missing)}"
        left = None if budget is None else budget - (time.perf_counter() - began)
        expected = ratio * estimate(case, missing, device, results.machine)
        if left is not None and expected > left:
            skipped.append(Skipped(case, f"about {expected:.0f} s, {max(left, 0):.0f} s left"))
            tell(f"{label}: not begun ({skipped[-1].why})")
            continue
        tell(f"{label}: about {expected:.0f} s")
        _run_case(case, missing, results, pair, tell)
        measured.add(case.key)
        ratio = _ratio(results)
    return skipped


def _attempts(case: Case, results: Results) -> int:
    """How often the case, or what it lacks, was begun in vain."""
    record = results.cases.get(case.key, {})
    if not results.missing(case):
        return 0
    return record.get("attempts", 0) - record.get("complete", False)


def _ratio(results: Results) -> float:
    """By how much the estimates were off in the case that was finished last."""
    for record in reversed(results.cases.values()):
        if record["complete"] and "error" not in record:
            return max(0.2, record["seconds"] / record["expected_seconds"])
    return 1.0


class _Models:
    """The models of the last case, kept for the next one if it has the same."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._names: tuple[str, str, str] | None = None
        self._pair: ArgsDecoder | None = None

    def of(self, case: Case) -> ArgsDecoder:
        """A fresh decoder, with empty caches and nothing captured, over the case's models."""
        torch.compiler.reset()  # compiled steps of earlier cases count against a limit of shapes
        names = (case.lm, case.rm, case.dtype)
        costs = roofline.model_cost(case.lm, True), roofline.model_cost(case.rm, False)
        # As much as the case needs: the rest of the device is for the other methods.
        room = cache_bytes(
            sum(cost.cached for cost in costs) * roofline.DTYPES[case.dtype].itemsize,
            batch=case.batch,
            tokens=case.prompt + max(PROFILED, case.new_tokens),
        )
        if names == self._names and self._pair is not None:
            old, self._pair = self._pair, None
            pair = ArgsDecoder(old.language_model, old.reward_model, cache_bytes=room)
            del old
        else:
            self._pair = None
            self.free()
            dtype = roofline.DTYPES[case.dtype]
            pair = models.random_pair(
                case.lm, case.rm, device=self.device, dtype=dtype, cache_bytes=room
            )
        self._names, self._pair = names, pair
        self.free()
        return pair

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure_machine(
    cases: Sequence[Case], results: Results, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Bandwidth and peaks, once per file: what the floors of the report are computed from."""
    results.machine["type"] = device.type
    peaks = results.machine.setdefault("peak", {})
    missing = {case.dtype for case in cases} - peaks.keys()
    if "bandwidth" in results.machine and not missing:
        return
    tell("measuring the bandwidth of a copy and the peak of a matrix product")
    results.machine.setdefault("bandwidth", copy_bandwidth(device))
    peaks |= {dtype: roofline.matmul_peak(device, dtype) for dtype in sorted(missing)}
    results.write()


def _run_case(
    case: Case,
    methods: Sequence[str],
    results: Results,
    kept: _Models,
    tell: Callable[[str], None],
) -> None:
    """Measure a case, or those of its methods that it lacks."""
    began = time.perf_counter()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    attempts = _attempts(case, results) + 1
    before = results.cases.pop(case.key, {})  # so that the last of the table is the last measured
    adding = len(methods) < len(case.methods)
    record: dict[str, Any] = {
        "case": case.as_json(),
        "started": started,
        "complete": False,
        "attempts": attempts,
        "cache": _cache(case),
        "methods": {},
    }
    if adding:
        known = Case.from_json(before["case"]).methods
        record = before | {"attempts": attempts + 1, "case": case.as_json()}
        record["case"]["methods"] = [*known, *(name for name in methods if name not in known)]
    results.cases[case.key] = record
    results.write()
    try:
        pair = kept.of(case)
        record["cache"]["bytes"] = pair.cache.bytes
        if adding and "step_seconds" in record["methods"].get(baselines.ARGS, {}):
            # Another process, or another hour: what is added has ARGS beside it again.
            again = _measured(pair, case, baselines.ARGS, tell)
            addition = {"started": started, "methods": [], "args": again}
            record.setdefault("added", []).append(addition)
        for method, following in zip(methods, [*methods[1:], None], strict=True):
            record["methods"][method] = _measured(pair, case, method, tell)
            if adding and "added" in record:
                record["added"][-1]["methods"].append(method)
            results.write()
            if not {method, following} <= set(baselines.COMPILED):
                free(pair)
            kept.free()
            _check_device(kept.device, case)
        if "parts" not in record:
            record |= _parts(pair, case, record["methods"], tell)
            kept.free()
            _check_device(kept.device, case)
    except torch.OutOfMemoryError as error:
        record["error"] = _first_line(error)
        tell(f"  the models do not fit: {record['error']}")
    finally:
        # A lost device ends the case too: the next run goes on behind it.
        lost = sys.exc_info()[0]
        if lost is None or issubclass(lost, DeviceLostError):
            record["complete"] = True
            record["seconds"] = time.perf_counter() - began
            record["expected_seconds"] = estimate(case, methods, kept.device, results.machine)
            results.write()


def _parts(
    pair: ArgsDecoder, case: Case, methods: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Where a step of ARGS goes; or why that is not known, which is no fault of the case."""
    step = methods.get(baselines.ARGS, {}).get("step_seconds")
    if step is None:
        return {}
    try:
        new_tokens = max(PROFILED, case.new_tokens)
        found = parts.measure_parts(pair, prompts_of(case), new_tokens, case.k, case.w, step)
    except Exception as error:
        tell(f"  where a step's time goes: failed: {_first_line(error)}")
        return {"parts_error": _first_line(error)}
    largest = sorted(found["parts"].items(), key=lambda part: -part[1])[:3]
    tell(f"  a step: {', '.join(f'{seconds / step:.0%} {name}' for name, seconds in largest)}")
    return found


def _measured(
    pair: ArgsDecoder, case: Case, method: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The figures of a method, or its error: a baseline that fails is a result too."""
    try:
        figures = _measure(pair, case, method)
    except Exception as error:
        tell(f"  {method:36} failed: {_first_line(error)}")
        return {"error": _first_line(error)}
    tell(
        f"  {method:36} {figures['step_seconds'] * 1e3:9.3f} ms/step  "
        f"{figures['tokens_per_second']:9.1f} tokens/s"
    )
    return figures


def _check_device(device: torch.device, case: Case) -> None:
    """An illegal access poisons the process: whatever else is tried in it fails for no fault of its
    own."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceLostError(
            f"the device answers no more after an error in {case.key} ({_first_line(error)}); what "
            "was measured is written. Run the same command again: it goes on behind it"
        ) from error


def _measure(pair: ArgsDecoder, case: Case, method: str) -> dict[str, Any]:
    device = pair.device
    decode, n = baselines.METHODS[method], case.tokens_of(method)
    prompts = prompts_of(case)
    ready = method in EAGER or device.type == "cpu"

    def call(new_tokens: int) -> Callable[[], list[list[int]]]:
        return lambda: decode(pair, prompts, new_tokens, case.k, case.w)

    before = _allocated(device)
    got = call(n)()  # the first warm-up: compiles, captures, allocates
    if [len(ids) for ids in got] != [n] * case.batch:
        raise RuntimeError(f"{method} gave {[len(ids) for ids in got]} tokens, {n} were asked for")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timing = {"cold": False, "repeats": REPEATS, "seconds": SECONDS[device.type]}
    whole = measure(call(n), device, warm_up=0 if ready else 1, **timing)
    peak = _allocated(device, peak=True)
    first = measure(call(1), device, warm_up=0 if method in SLOW else 1, **timing)
    steps, seconds = n - 1, whole.median - first.median
    if seconds <= 0:
        raise RuntimeError(
            f"{n} tokens took {whole.median:.3g} s and the first alone {first.median:.3g} s: too "
            "noisy to tell a step's time"
        )
    return {
        "new_tokens": n,
        "whole": whole.as_json(),
        "first": first.as_json(),
        "prefill_seconds": first.median,
        "step_seconds": seconds / steps,
        "step_seconds_low": (whole.low - first.median) / steps,
        "step_seconds_high": (whole.high - first.median) / steps,
        "tokens_per_second": case.batch * steps / seconds,
        "memory_before_bytes": before,
        "peak_memory_bytes": peak,
    }


def _allocated(device: torch.device, *, peak: bool = False) -> int | None:
    """Bytes that torch holds on the device; not known of the CPU."""
    if device.type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device)


def prompts_of(case: Case) -> list[list[int]]:
    """The case's prompts: random ids, the same in every run."""
    generator = torch.Generator().manual_seed(case.prompt)
    V = models.config(case.lm).vocab_size
    return torch.randint(5, V, (case.batch, case.prompt), generator=generator).tolist()


def _cache(case: Case) -> dict[str, int]:
    """Computed: the reward model's keys and values for one sequence, once and k times."""
    one = roofline.cache_bytes(case.rm, tokens=case.prompt + case.new_tokens, dtype=case.dtype)
    return {"rm_bytes_per_sequence": one, "rm_bytes_of_k_copies": case.k * one}


def estimate(
    case: Case, methods: Sequence[str], device: torch.device, machine: dict[str, Any]
) -> float:
    """Seconds that a case, or these methods of it, may take: a guess from floors, good to a
    factor."""
    here = roofline.Device("", machine["bandwidth"], machine["peak"], "")
    at = {"t": case.prompt, "batch": case.batch, "dtype": case.dtype, "device": here}
    floor = roofline.floor(case.lm, case.rm, k=case.k, **at)
    lm_layers, rm_layers = (models.config(name).num_hidden_layers for name in (case.lm, case.rm))
    layers = lm_layers + rm_layers
    size = roofline.DTYPES[case.dtype].itemsize
    lm, rm = roofline.model_cost(case.lm, True), roofline.model_cost(case.rm, False)
    seconds = 2 * size * (lm.parameters + rm.parameters) / here.bandwidth + 2.0
    if len(methods) < len(case.methods):
        methods = (baselines.ARGS, *methods)  # once more, beside what is added
    for method in methods:
        greedy = method in baselines.GREEDIES
        eager = method in EAGER or device.type == "cpu"
        launches = (lm_layers if greedy else layers) * LAYER_SECONDS[device.type]
        overhead = launches * (1 if eager else REPLAYED)
        step = (floor.greedy_seconds if greedy else floor.step_seconds) * 1.5 + overhead
        copies = 0 if greedy else case.k if method in SLOW else 1
        flops = 2 * case.batch * case.prompt * (lm.matrices + copies * rm.matrices)
        prefill = flops / here.peak[case.dtype] + launches
        if method == baselines.NAIVE:
            step += prefill
        if method in (baselines.STATIC, *baselines.COMPILED):
            # The language model, and for ARGS the reward model too.
            at_work = layers if method == baselines.ARGS_COMPILED else lm_layers
            seconds += at_work * COMPILE_SECONDS[device.type]
        if method == baselines.ARGS:
            profiled = parts.STEPS[device.type] + parts.WARM_UP
            seconds += PROFILE_SECONDS + prefill + profiled * 3 * (step + launches)
        once = prefill + case.tokens_of(method) * step
        limit = SECONDS[device.type]
        seconds += (1 if eager else 2) * once + max(3 * once, min(REPEATS * once, limit))
        seconds += max(3 * prefill, min(REPEATS * prefill, limit))
    return seconds


def _first_line(error: BaseException) -> str:
    words = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {words}"[:400]
