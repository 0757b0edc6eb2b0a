"""Bursts that are launched before the last one is read, and a language model that looks ahead."""

import copy
import functools
import math

import pytest
import torch
from refusals import refuses
from tiny_models import decoder, language_model, reward_model, tokens
from traffic import assert_as_alone, check, run, scheduler, sequence

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.engine import lookahead
from args_fast.engine.capacity import pages_within
from args_fast.errors import ConfigError, NonFiniteError, PairMismatchError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import PAGE_SIZE
from args_fast.models.branches import Branches

S = 3  # steps of a burst


def rows_of(model):
    """The rows of every forward pass from now on."""
    counted = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: counted.append(tuple(args[0].shape))
    )
    return counted


def fresh():
    """A pair whose hooks are nobody else's."""
    return ArgsDecoder(copy.deepcopy(language_model()), copy.deepcopy(reward_model()))


# ---- what is launched, and when it is read -------------------------------------------------------


@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_so_many_bursts_are_launched_before_the_first_is_read(in_flight):
    engine = scheduler(steps=S, in_flight=in_flight)
    one = sequence(tokens(9), k=4, max_new_tokens=4 * S)
    engine.submit(one)
    seen = []
    while engine.busy:
        engine.step()
        seen.append((len(one.tokens), one.in_flight))
        check(engine)
    launched = [S * min(i + 1, 4) for i in range(len(seen))]
    assert [read + waits for read, waits in seen] == launched
    assert [waits for _, waits in seen[in_flight:4]] == [S * in_flight] * (4 - in_flight)
    assert_as_alone(one)


@pytest.mark.parametrize("ahead", [0, math.inf])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 6])
def test_an_end_is_noticed_late_and_the_surplus_is_dropped(at, ahead):
    pair = fresh()
    expected = sequence(tokens(9), k=4, max_new_tokens=30)
    run(scheduler(pair), expected)
    end = expected.tokens[at].token_id
    at = [token.token_id for token in expected.tokens].index(end)
    passes = rows_of(pair.reward_model)
    engine = scheduler(pair, steps=S, in_flight=1, lookahead=ahead)
    one = sequence(tokens(9), k=4, max_new_tokens=30)
    one.end_tokens = frozenset([end])
    run(engine, one)
    assert [t.token_id for t in one.tokens] == [t.token_id for t in expected.tokens[: at + 1]]
    assert one.finish_reason == "eos"
    steps = len(passes) - 1  # without the prompt
    assert at + 1 <= steps <= at + 2 * S
    assert engine.pool.pages_in_use == 0
    assert all(runner.bursts_in_flight == 0 for runner in engine.bursts.runners.values())


def test_a_sequence_goes_on_as_it_is_until_another_comes():
    # What the host knows is sent once, and again when the batch is another one.
    pair = fresh()
    engine = scheduler(pair, steps=S, in_flight=1, lookahead=math.inf, pages=40)
    passes = rows_of(pair.language_model)
    one = sequence(tokens(9), k=4, max_new_tokens=8 * S)
    engine.submit(one)
    for _ in range(3):
        engine.step()
    assert passes == [(1, 8), (1, 1)] + [(1, 4)] * (3 * S)
    passes.clear()
    other = sequence(tokens(5), k=4, max_new_tokens=4 * S)
    engine.submit(other)
    for _ in range(2):
        engine.step()
    assert passes == [(1, 4), (2, 1)] + [(2, 4)] * (2 * S)
    while engine.busy:
        engine.step()
    assert_as_alone(one)
    assert_as_alone(other)


def test_a_burst_that_was_read_is_no_reason_to_send_it_all_again():
    pair = fresh()
    engine = scheduler(pair, steps=1, in_flight=0, lookahead=math.inf)
    passes = rows_of(pair.language_model)
    one = sequence(tokens(9), k=4, max_new_tokens=6)
    run(engine, one)
    assert passes == [(1, 8), (1, 1)] + [(1, 4)] * 6
    assert_as_alone(one)


@pytest.mark.parametrize("ahead", [0, math.inf])
def test_one_that_is_called_off_midway_is_not_missed(ahead):
    engine = scheduler(steps=S, in_flight=1, lookahead=ahead)
    one, other = (sequence(tokens(9, seed=i), k=4, max_new_tokens=20) for i in range(2))
    for each in (one, other):
        engine.submit(each)
    engine.step()
    engine.step()
    assert one.in_flight == S
    engine.cancel(one)
    later = sequence(tokens(30), k=4, max_new_tokens=20)
    run(engine, later)
    assert len(one.tokens) == S
    assert_as_alone(other)
    assert_as_alone(later)


def test_a_fault_midway_is_that_sequences_alone():
    pair = fresh()
    engine = scheduler(pair, steps=S, in_flight=1)
    one, other = (sequence(tokens(9, seed=i), k=4, max_new_tokens=20) for i in range(2))
    for each in (one, other):
        engine.submit(each)
    calls = iter(range(100))

    def break_first_row(module, args, output):
        if next(calls) == 4:
            output[0] = math.nan
        return output

    with torch.no_grad():
        hook = pair.language_model.lm_head.register_forward_hook(break_first_row)
        while engine.busy:
            engine.step()
    hook.remove()
    assert isinstance(one.error, NonFiniteError)
    assert len(one.tokens) == 4
    assert_as_alone(other)
    assert engine.pool.pages_in_use == 0


def test_a_fault_past_the_end_is_nobodys():
    # What the device made beyond the end is dropped, whatever it is.
    pair = fresh()
    expected = sequence(tokens(9), k=4, max_new_tokens=20)
    run(scheduler(pair), expected)
    engine = scheduler(pair, steps=8, in_flight=1)
    one = sequence(tokens(9), k=4, max_new_tokens=20)
    one.end_tokens = frozenset([expected.tokens[0].token_id])
    calls = iter(range(100))

    def break_later(module, args, output):
        return output * math.nan if next(calls) > 3 else output

    hook = pair.language_model.lm_head.register_forward_hook(break_later)
    run(engine, one)
    hook.remove()
    assert one.error is None
    assert one.finish_reason == "eos"
    assert [t.token_id for t in one.tokens] == [expected.tokens[0].token_id]


def test_memory_that_cannot_be_had_leaves_no_batch_behind(monkeypatch):
    # The batch of before may be on memory that has moved meanwhile.
    engine = scheduler(pages=40)
    run(engine, sequence(tokens(9), k=3))
    (runner,) = engine.bursts.runners.values()
    tensor, names = BatchMemory.tensor, []

    def scarce(self, name, *shape, **options):
        names.append(name)
        if len(names) > 3:
            raise torch.OutOfMemoryError("made up")
        return tensor(self, name, *shape, **options)

    monkeypatch.setattr(BatchMemory, "tensor", scarce)
    one = sequence(tokens(9), k=5)
    engine.submit(one)
    engine.step()
    assert isinstance(one.error, torch.OutOfMemoryError)
    assert runner._batch is None
    monkeypatch.undo()
    (again,) = run(engine, sequence(tokens(9), k=3))
    assert_as_alone(again)


def test_a_failure_with_bursts_unread_leaves_a_clean_engine():
    pair = fresh()
    engine = scheduler(pair, steps=S, in_flight=1)
    one = sequence(tokens(9), k=4, max_new_tokens=20)
    engine.submit(one)
    engine.step()

    def fail(*_):
        raise MemoryError("made up")

    hook = pair.language_model.lm_head.register_forward_pre_hook(fail)
    engine.step()
    hook.remove()
    assert isinstance(one.error, MemoryError)
    assert not engine.busy
    assert engine.pool.pages_in_use == 0
    (later,) = run(engine, sequence(tokens(9), k=4, max_new_tokens=20))
    assert_as_alone(later)


# ---- lookahead -----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [0, 1])
def test_a_row_of_another_candidate_is_caught(monkeypatch, broken):
    # The language model's row that is kept must be the winner's, in its cache as in its logits.
    one = sequence(tokens(9), k=4, max_new_tokens=20)
    commit = Branches.commit
    if broken:
        monkeypatch.setattr(Branches, "commit", lambda tail, branch: commit(tail, branch * 0))
    run(scheduler(steps=S, in_flight=1, lookahead=math.inf), one)
    if broken:
        with pytest.raises(AssertionError):
            assert_as_alone(one)
    else:
        assert_as_alone(one)


@pytest.mark.parametrize("most", [0, 8, 12])
def test_it_looks_ahead_up_to_so_many_rows(most):
    pair = fresh()
    engine = scheduler(pair, steps=S, lookahead=most, pages=40)
    passes = rows_of(pair.language_model)
    run(engine, *(sequence(tokens(5, seed=i), k=4, max_new_tokens=S) for i in range(3)))
    assert ((3, 4) in passes) == (most >= 12)


def test_without_rewards_there_is_nothing_to_look_ahead_for():
    pair = fresh()
    engine = scheduler(pair, steps=S, in_flight=1, lookahead=math.inf)
    passes = rows_of(pair.language_model)
    run(engine, sequence(tokens(5), k=4, w=0.0), sequence(tokens(7), k=1))
    assert {rows for _, rows in passes[2:]} == {1}


class Device:
    """What is asked of a model before it runs."""

    def __init__(self, device, dtype):
        self.device = torch.device(device)
        self.layout = type("Layout", (), {"dtype": dtype, "bytes_per_token": 1})
        self.layout.device = self.device
        self.max_length = math.inf


@pytest.mark.parametrize(
    ("capability", "dtype", "one_device", "batches"),
    [
        ((8, 0), torch.bfloat16, True, 3),
        ((9, 0), torch.bfloat16, True, 5),
        ((10, 0), torch.float16, True, 5),
        ((9, 0), torch.float32, True, 0),
        ((9, 0), torch.bfloat16, False, 20),
        ((7, 5), torch.float16, True, 0),
    ],
)
def test_by_itself_it_follows_the_ridge(monkeypatch, capability, dtype, one_device, batches):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    lm, rm = Device("cuda:0", dtype), Device("cuda:0" if one_device else "cuda:1", dtype)
    rows = functools.partial(lookahead.lookahead_rows, lm, {rm.device})
    assert rows("auto") // 10 == batches
    assert rows(True) == math.inf
    assert rows(False) == 0


def test_on_the_cpu_it_looks_ahead_only_where_it_is_told():
    prompt, config = tokens(9), DecodingConfig(k=4, max_new_tokens=9, eos_token_ids=[])
    results = {}
    for asked in ("auto", False, True):
        pair = ArgsDecoder(language_model(), reward_model(), lookahead=asked)
        assert pair.engine.bursts.runner("reward").lookahead == (math.inf if asked is True else 0)
        results[asked] = pair.generate(prompt, config)[0].token_ids
    assert results["auto"] == results[False] == results[True]
    with refuses(ConfigError, "lookahead is 'never'", "True, False or 'auto'"):
        ArgsDecoder(language_model(), reward_model(), lookahead="never")


# ---- devices -------------------------------------------------------------------------------------


def test_a_model_on_the_cpu_and_one_elsewhere_are_refused():
    elsewhere = fresh().reward_model.to("meta")
    with refuses(PairMismatchError, "on cpu", "on meta", "two CUDA devices"):
        ArgsDecoder(language_model(), elsewhere)


def test_each_model_can_be_given_its_device():
    from args_fast.tiny_pair import LM, RM

    pair = ArgsDecoder.from_pretrained(LM, RM, device="cuda", lm_device="cpu", rm_device="cpu")
    assert pair.language_model.device == pair.reward_model.device == torch.device("cpu")
    with refuses(ConfigError, "device is 'cuda:7'"):
        ArgsDecoder.from_pretrained(LM, RM, rm_device="cuda:7")


@pytest.mark.parametrize(
    ("rm_at", "pages"),
    [
        ("cuda:0", 1000 // (2 * PAGE_SIZE) - 1),  # both on one: its room over both
        ("cuda:1", 100 // PAGE_SIZE - 1),  # the device with less room has the say
    ],
)
def test_each_device_has_room_for_its_own_models_cache(monkeypatch, rm_at, pages):
    room = {torch.device("cuda", 0): 1000, torch.device("cuda", 1): 100}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room[device], 10000))
    lm, rm = (Device(at, torch.float32) for at in ("cuda:0", rm_at))
    readers = [lm.layout, rm.layout]
    assert pages_within(readers, math.inf, 64, 1.0, None) == pages
    with refuses(ConfigError, "memory_fraction is 0.5", f"at least {4 * PAGE_SIZE} bytes"):
        pages_within(readers, math.inf, 64, 0.5, None)


def test_decoders_of_every_order_share_a_pair_of_models():
    # The orders that the oracle's tests use are what they are called.
    assert decoder(order="ahead").engine.bursts.runner("reward").lookahead == math.inf
    assert decoder(order="captured").engine.bursts.runner("reward").graphs.enabled
    assert not decoder().engine.bursts.runner("reward").graphs.enabled
