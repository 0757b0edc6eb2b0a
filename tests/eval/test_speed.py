"""Time per token leaves the prompt's own time out, and takes the methods in turn."""

import json

import pytest
from eval_runs import Opener, a_plan, silent

from args_fast.eval import speed
from args_fast.eval.run import evaluate


class Clock:
    """Time that passes only while something is decoded: seconds by method and length."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.order = []
        self.decode = speed.decode
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(speed, "decode", self)

    def __call__(self, decoder, method, requests, limits):
        self.order.append((method.kind, limits.max_new_tokens))
        prompt, step = 5.0, {"greedy": 1.0, "args-greedy": 2.5}[method.kind]
        self.now += prompt + step * limits.max_new_tokens
        return self.decode(decoder, method, requests, limits)


def test_a_step_is_timed_without_the_prompt(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    found = evaluate(a_plan("greedy", "args-greedy", timing_prompts=2), tmp_path, Opener(), silent)
    greedy, guided = (method["speed"] for method in found["methods"])
    assert greedy["milliseconds_per_token"] == {"median": 1000, "low": 1000, "high": 1000}
    assert guided["slowdown"] == {"median": 2.5, "low": 2.5, "high": 2.5}
    one_prompt = [("greedy", 2), ("greedy", 1), ("greedy", 8)]
    one_prompt += [("args-greedy", 2), ("args-greedy", 1), ("args-greedy", 8)]
    assert clock.order == 2 * one_prompt
    assert found["speed"] == {"tokens": 8, "batch": 1, "device": "cpu"}


def test_times_are_kept_and_taken_again_for_a_new_method(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    evaluate(a_plan("greedy", timing_prompts=1), tmp_path, Opener(), silent)
    evaluate(a_plan("greedy", timing_prompts=1), tmp_path, Opener(), silent)
    assert len(clock.order) == 3
    evaluate(a_plan("greedy", "args-greedy", timing_prompts=1), tmp_path, Opener(), silent)
    assert [kind for kind, _ in clock.order[3:]] == 3 * ["greedy"] + 3 * ["args-greedy"]
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert set(kept["seconds_per_token"]) == {"greedy", "args-greedy:w=1.5,k=10"}


def test_without_timing_prompts_there_are_no_times(tmp_path):
    found = evaluate(a_plan("greedy", timing_prompts=0), tmp_path, Opener(), silent)
    assert found["speed"] is None
    assert found["methods"][0]["speed"] is None


def test_prompts_that_cannot_be_decoded_have_no_times(tmp_path):
    found = evaluate(a_plan("greedy", timing_prompts=2), tmp_path, Opener(longest=1), silent)
    assert found["methods"][0]["speed"] is None


@pytest.mark.parametrize(
    ("seconds", "baseline", "slowdown"),
    [
        ([2.0, 3.0], [1.0, 1.0], 2.5),
        ([], [], None),
        ([1.0], [1.0, 1.0], None),
        ([1.0], [0.0], None),
    ],
)
def test_summarize_speed_needs_a_pair_for_each_prompt(seconds, baseline, slowdown):
    found = speed.summarize_speed(seconds, baseline)
    assert (found and found["slowdown"]["median"]) == slowdown
