"""Where the time of a step goes: every op of a few steps by what it is, and by whose it is.

On the CPU an op counts by its own time, without that of the ops it calls; on CUDA by the kernels
that it launched, by the device's clock. The engine is profiled without CUDA graphs there: a replay
has kernels and no ops, so nobody could say which model a matrix product is of. What a step takes
beyond its ops is told apart: Python, launches, gaps between kernels.

The profiler makes the host slower. So on the CPU the parts are shares of the profiled step, times
the measured one; on CUDA kernels keep their time, and the rest of the measured step is the host's.
Only where kernels add up to more than the step, because they ran side by side in it, are they
scaled down to it.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench.baselines.engine import beside

PRODUCTS = {"aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul"}
KINDS = {
    "aten::native_layer_norm": "layer norms",
    "aten::layer_norm": "layer norms",
    "aten::relu": "activations",
    "aten::clamp_min": "activations",
    "aten::copy_": "copies",
    "aten::clone": "copies",
    "aten::contiguous": "copies",
    "aten::add": "additions",
    "aten::embedding": "embeddings",
    "aten::index_select": "embeddings",
}
OURS = "args_fast::"
PRODUCT, OTHER = "matrix products", "other torch ops"

LM, RM = "LM", "RM"  # the ranges that mark the forward passes of the two models
ATTENTION, TOPK, COMMIT = "attention", "top-k", "select + commit"
REST, IDLE = "norms, activations, other", "host, idle"
PARTS = {
    "branch_attention": ATTENTION,
    "topk_logprobs": TOPK,
    "select": COMMIT,
    "commit": COMMIT,
    "select_commit": COMMIT,
}
Parts = dict[str, float]  # seconds
NAMES = (f"{LM} {PRODUCT}", f"{RM} {PRODUCT}", PRODUCT, ATTENTION, TOPK, COMMIT, REST, IDLE)

WARM_UP = 2  # steps
STEPS = {"cpu": 6, "cuda": 4}  # that are profiled
SECONDS = 3.0  # after which two steps are enough


def kind(event: Any) -> str:
    """What an op is. An op inside one of ours, or inside a product, is part of it."""
    line = [event, *_ancestors(event)]
    for e in line:
        if e.name.startswith(OURS):
            name = e.name.removeprefix(OURS)
            return PRODUCT if name == "linear" else name
    if any(e.name in PRODUCTS for e in line):
        return PRODUCT
    return next((KINDS[e.name] for e in line if e.name in KINDS), OTHER)


def spent(events: Iterable[Any], *, device: str = "cpu") -> dict[tuple[str, str], float]:
    """(model, kind of work) -> seconds, of the events of a profile. The model is LM or RM, or ""
    for what lies in no forward pass; ranges of others' making are no work and not counted."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if "::" not in event.name:  # a range, or the driver's call that an op makes
            continue
        model = next((e.name for e in _ancestors(event) if e.name in (LM, RM)), "")
        if device == "cuda":
            microseconds = sum(kernel.duration for kernel in event.kernels)
        else:
            microseconds = event.self_cpu_time_total
        found[model, kind(event)] += microseconds * 1e-6
    return dict(found)


def of_a_step(times: dict[tuple[str, str], float], scale: float, step_seconds: float) -> Parts:
    """The parts of a step as it was measured, which they add up to: ``times`` are those of one
    step of the profile, in whose seconds a measured one is ``scale`` long."""
    parts = dict.fromkeys(NAMES, 0.0)
    for (model, what), seconds in times.items():
        parts[_part(model, what)] += seconds * scale
    parts[IDLE] = max(0.0, step_seconds - sum(parts.values()))
    return {name: seconds for name, seconds in parts.items() if seconds or name != PRODUCT}


def _part(model: str, what: str) -> str:
    if what == PRODUCT:
        return f"{model} {PRODUCT}".strip()
    return PARTS.get(what, REST)


def _ancestors(event: Any) -> Iterator[Any]:
    above = event.cpu_parent
    while above is not None:
        yield above
        above = above.cpu_parent


# ---- a profile of a few steps --------------------------------------------------------------------


class _EnoughError(Exception):
    """Ends a decode that has been seen enough of."""


def measure_parts(
    pair: ArgsDecoder,
    prompts: Sequence[list[int]],
    new_tokens: int,
    k: int,
    w: float,
    step_seconds: float,
) -> dict[str, Any]:
    """Profile a few steps of ARGS in which the whole batch decodes.

    Args:
        step_seconds: of a step, as measured without the profiler.

    Returns:
        "parts": part -> seconds, together step_seconds; "profile": how many "steps" it is from, and
        the "busy_seconds" of one, before scaling.
    """
    device = pair.device
    if device.type == "cuda":
        pair = beside(pair, prompts, new_tokens, cuda_graphs=False)
    times, steps, wall = _profiled(pair, prompts, new_tokens, k, w)
    times = {what: seconds / steps for what, seconds in times.items()}
    busy = sum(times.values())
    whole = max(busy, step_seconds) if device.type == "cuda" else wall / steps
    return {
        "parts": of_a_step(times, step_seconds / whole, step_seconds),
        "profile": {"steps": steps, "busy_seconds": busy},
    }


def _profiled(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, k: int, w: float
) -> tuple[dict[tuple[str, str], float], int, float]:
    """What ``spent`` finds in some steps, how many they are, and the seconds that they took."""
    device = pair.device.type
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities, acc_events=True)
    seen, steps, began, wall = 0, 0, 0.0, 0.0

    def at_step(rows: int) -> None:
        """Called where a step begins: with the language model's forward pass."""
        nonlocal seen, steps, began, wall
        if rows < len(prompts):
            return  # not all have joined yet
        seen += 1
        if seen <= WARM_UP:
            return
        if device == "cuda":
            torch.cuda.synchronize(pair.device)
        if not began:
            profiler.start()
            began = time.perf_counter()
            return
        steps, wall = steps + 1, time.perf_counter() - began
        if steps == STEPS[device] or (steps >= 2 and wall > SECONDS):
            profiler.stop()
            raise _EnoughError

    config = DecodingConfig(k=k, w=w, max_new_tokens=new_tokens, eos_token_ids=[])
    try:
        with marked(pair, at_step):
            pair.generate(list(prompts), config)
    except _EnoughError:
        return spent(profiler.events() or (), device=device), steps, wall
    except BaseException:
        if began:
            profiler.stop()
        raise
    if began:
        profiler.stop()
    raise RuntimeError(
        f"{new_tokens} new tokens are too few to profile: {seen} steps had the whole batch"
    )


@contextmanager
def marked(pair: ArgsDecoder, at_step: Callable[[int], None]) -> Iterator[None]:
    """Forward passes of the two models are ranges of a profile, called LM and RM. ``at_step`` gets
    the number of sequences before the language model makes logits, which is once a step: prompts
    are stored without them."""
    open_ranges: dict[str, record_function] = {}

    def hooks(module: nn.Module, name: str, before: Callable[[int], None] | None) -> list[Any]:
        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if before is not None:
                before(len(kwargs["input_ids"]))
            open_ranges[name] = record_function(name)
            open_ranges[name].__enter__()

        def leave(*ignored: object) -> None:
            open_ranges.pop(name).__exit__(None, None, None)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]

    handles = hooks(pair.language_model, LM, at_step)
    handles += hooks(pair.reward_model.base_model, RM, None)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
