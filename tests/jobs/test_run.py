"""Outcomes come out once each, in order where asked, and few of them wait."""

import pytest
from fake_decoder import REFUSED_K, FakeDecoder, answer
from hypothesis import given
from hypothesis import strategies as st

from args_fast import DecodingConfig
from args_fast.errors import ArgsError, LineError
from args_fast.jobs import run as subject
from args_fast.jobs.records import Origin
from args_fast.jobs.run import as_completed, in_order

CONFIG = DecodingConfig(max_new_tokens=2)


def entry(line, kind="good"):
    if kind == "bad":
        return Origin(line, {}), LineError(f"line {line}")
    return Origin(line, {}), ([line], CONFIG if kind == "good" else DecodingConfig(k=REFUSED_K))


class Watched:
    """An iterator that counts what was taken."""

    def __init__(self, items):
        self.items = iter(items)
        self.taken = 0

    def __iter__(self):
        return self

    def __next__(self):
        item = next(self.items)
        self.taken += 1
        return item


class SlowFirst(FakeDecoder):
    """Line 1 is completed when nothing else is under way."""

    def choose(self, under_way):
        return next((i for i, (_, (ids, _)) in enumerate(under_way) if ids != [1]), 0)


@given(
    st.lists(st.sampled_from(["good", "bad", "refused"]), max_size=40),
    st.integers(1, 9),
    st.integers(1, 9) | st.none(),
    st.integers(0, 99),
)
def test_every_entry_has_its_own_outcome_once(kinds, slots, window, seed):
    entries = [entry(line, kind) for line, kind in enumerate(kinds, 1)]
    decoder = FakeDecoder(slots, seed)
    outcomes = list(in_order(as_completed(decoder, iter(entries), window)))
    assert [origin for origin, _ in outcomes] == [origin for origin, _ in entries]
    for kind, (origin, result) in zip(kinds, outcomes, strict=True):
        if kind == "good":
            assert result == [answer([origin.line], CONFIG)]
        else:
            assert isinstance(result, ArgsError)
            assert str(result) == (f"line {origin.line}" if kind == "bad" else f"k is {REFUSED_K}")


@given(st.lists(st.integers(1, 3), max_size=20), st.integers(1, 9), st.integers(0, 99))
def test_samples_of_one_line_are_one_outcome(counts, slots, seed):
    configs = [DecodingConfig(max_new_tokens=2, num_return_sequences=n) for n in counts]
    entries = [(Origin(i, {}), ([i], config)) for i, config in enumerate(configs, 1)]
    outcomes = list(in_order(as_completed(FakeDecoder(slots, seed), iter(entries), 5)))
    assert [origin.line for origin, _ in outcomes] == list(range(1, len(counts) + 1))
    for (origin, samples), config in zip(outcomes, configs, strict=True):
        assert samples == [answer([origin.line], each) for each in config.samples()]


@pytest.mark.parametrize("bad_from", [10**9, 2], ids=["good", "bad"])
def test_one_slow_line_lets_no_more_than_the_window_wait(bad_from):
    n, window, slots = 200, 12, 4
    source = Watched(entry(i, "bad" if i >= bad_from else "good") for i in range(1, n + 1))
    most = emitted = 0

    def watched(completed):
        nonlocal most
        for item in completed:
            most = max(most, source.taken - emitted)
            yield item

    completed = as_completed(SlowFirst(slots), source, window)
    for _ in in_order(watched(completed)):
        emitted += 1
    assert emitted == n
    assert slots < most <= window


def test_without_a_window_a_slow_line_holds_up_no_other():
    source = Watched(entry(i) for i in range(1, 201))
    places = [place for place, _ in as_completed(SlowFirst(4), source)]
    assert places == [*range(1, 200), 0]


def test_requests_are_taken_when_there_is_room():
    source = Watched(entry(i) for i in range(1, 1001))
    next(as_completed(FakeDecoder(slots=4), source, 100))
    assert source.taken == 4


def test_a_file_of_bad_lines_is_not_gathered_before_the_first_comes_out(monkeypatch):
    monkeypatch.setattr(subject, "WINDOW", 10)
    source = Watched(entry(i, "bad") for i in range(1, 1001))
    completed = as_completed(FakeDecoder(), source)
    next(completed)
    assert source.taken == 10
    assert sum(1 for _ in completed) == 999
