"""The slowdown has one definition, and the methods take turns."""

from dataclasses import replace

import pytest

from args_fast.bench import baselines, slowdown
from args_fast.bench.cases import USUAL, Case
from args_fast.bench.models import random_pair
from args_fast.bench.slowdown import Method, take_turns

CASE = Case("tiny-opt", "tiny-opt", k=5, prompt=9, dtype="float32", new_tokens=12)


def method(name, whole, first, log=None, rounds=3, **more):
    """Takes these seconds, in turn, for 11 new tokens and for one."""
    times = {11: iter(whole), 1: iter(first)}

    def decode(new_tokens):
        if log is not None:
            log.append((name, new_tokens))
        return next(times[new_tokens]), [[0] * new_tokens] * more.get("batch", 1)

    return Method(name, decode, 11, rounds, warm_ups=0, **more)


def test_step_is_without_the_prompt():
    timed = method("a", [3.0, 5.0, 4.5], [1.0, 2.0, 2.0], batch=4, bytes_read=100)
    found = take_turns([timed])["a"]
    assert found["step"]["median"] == pytest.approx(0.25)
    assert (found["step"]["minimum"], found["step"]["repeats"]) == (pytest.approx(0.2), 3)
    assert found["first"]["median"] == 2.0
    assert found["tokens_per_second"] == pytest.approx(4 / 0.25)
    assert found["bytes_per_second"] == pytest.approx(100 / 0.25)


def test_slowdown_is_of_steps_and_names_its_greedy():
    methods = take_turns(
        [
            method("transformers greedy", [2.0] * 3, [1.0] * 3),
            method("args-fast greedy", [1.8] * 3, [1.0] * 3),
            method("args-fast ARGS", [5.0] * 3, [3.0] * 3),
        ]
    )
    assert slowdown.slowdown(methods, "args-fast ARGS", "transformers greedy") == pytest.approx(2.0)
    said = slowdown.headline(methods)
    assert "2.00 times transformers greedy" in said
    assert "2.50 times args-fast greedy" in said


def test_methods_take_turns():
    log = []
    take_turns([method("a", [2.0] * 3, [1.0] * 3, log), method("b", [2.0], [1.0], log, rounds=1)])
    turn = [("a", 11), ("a", 1)]
    assert log == [*turn, ("b", 11), ("b", 1), *turn, *turn]


def test_failure_is_a_result_and_the_others_continue():
    def broken(new_tokens):
        raise RuntimeError("no such kernel\nwith details")

    failed = Method("broken", broken, 11, 3)
    methods = take_turns([failed, method("a", [2.0] * 3, [1.0] * 3)])
    assert methods["broken"] == {"error": "RuntimeError: no such kernel"}
    assert methods["a"]["step"]["median"] == pytest.approx(0.1)
    assert slowdown.slowdown(methods, "a", "broken") is None
    assert slowdown.failures(methods) == ["broken: RuntimeError: no such kernel"]


def test_noise_is_not_a_step():
    methods = take_turns([method("a", [1.0] * 3, [2.0] * 3)])
    assert "too noisy" in methods["a"]["error"]


def test_table_has_a_row_for_every_method():
    methods = take_turns(
        [
            method("transformers greedy", [2.0] * 3, [1.0] * 3, bytes_read=10**9),
            method("args-fast ARGS", [4.0] * 3, [1.5] * 3),
            method("broken", [], []),
        ]
    )
    header, greedy, args, broken = slowdown.table(methods, 2e10, ["transformers greedy"])
    row = dict(zip(header, greedy, strict=True))
    assert (row["ms per step"], row["GB/s"], row["of read"]) == ("100.00", "10.0", "50%")
    assert row["x transformers greedy"] == "1.00"
    assert (args[1], args[-1], args[4]) == ("250.00", "2.50", "")
    assert broken[:2] == ["broken", "failed"]
    lines = slowdown.as_markdown([header, greedy, args]).splitlines()
    assert len({len(line) for line in lines}) == 1  # the columns of a terminal are straight
    assert [set(cell.strip()) for cell in lines[1].split("|")[1:4]] == [
        {"-"},
        {"-", ":"},
        {"-", ":"},
    ]


# ---- in this process -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    return random_pair("tiny-opt", "tiny-opt")


@pytest.mark.parametrize("batch", [1, 3])
def test_measure_case_times_what_it_says(pair, batch):
    case = replace(CASE, batch=batch, methods=(*USUAL, baselines.K_COPIES))
    told = []
    methods = slowdown.measure_case(pair, case, rounds=3, report=told.append)
    assert list(methods) == list(case.methods)
    for name, found in methods.items():
        if "error" in found:  # of three rounds at this size, on a machine that is shared
            assert "too noisy" in found["error"]
            continue
        assert found["step"]["repeats"] == min(3, baselines.MOST_ROUNDS.get(name, 3))
        assert found["tokens_per_second"] == pytest.approx(batch / found["step"]["median"])
    assert f"round 3 of 3: {baselines.ARGS}" in told


def test_guided_methods_read_both_models(pair, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        slowdown,
        "take_turns",
        lambda methods, report: seen.update({m.name: m for m in methods}) or {},
    )
    slowdown.measure_case(pair, replace(CASE, methods=(*USUAL, baselines.K_COPIES)))
    assert seen[baselines.GREEDY].bytes_read == seen[baselines.TRANSFORMERS].bytes_read
    assert seen[baselines.ARGS].bytes_read == seen[baselines.K_COPIES].bytes_read
    assert seen[baselines.ARGS].bytes_read > 1.5 * seen[baselines.GREEDY].bytes_read


def test_method_that_decodes_too_few_tokens_is_not_timed(pair, monkeypatch):
    monkeypatch.setitem(baselines.METHODS, baselines.GREEDY, lambda *arguments: [[1, 2]])
    methods = slowdown.measure_case(pair, replace(CASE, methods=(baselines.GREEDY,)), rounds=2)
    assert "12 were asked for" in methods[baselines.GREEDY]["error"]
