"""Whatever comes, goes, waits or gives way: each request gets the tokens that it gets alone."""

import pytest
import torch
from hypothesis import Phase, settings
from passes import rows_of
from refusals import refuses
from sizes import examples
from tiny_models import decoder, tokens
from traffic import FIGURES, PAGES, Traffic, assert_as_alone, run, scheduler, sequence

from args_fast.errors import CapacityError
from args_fast.kvcache.storage import PAGE_SIZE


def test_any_interleaving_gives_each_request_its_own_tokens():
    case = Traffic.TestCase()
    case.settings = settings(
        stateful_step_count=25, max_examples=examples(15), phases=[Phase.generate]
    )
    case.runTest()
    print(FIGURES)
    assert FIGURES["requests"] > 50
    assert FIGURES["discarded"] <= FIGURES["requests"] * 0.1
    for figure in ("preempted", "shared", "cancelled", "waited"):
        assert FIGURES[figure] > 4, figure


# ---- each thing by itself ------------------------------------------------------------------------


def test_those_that_do_not_fit_give_way_and_lose_nothing():
    engine = scheduler(pages=5, rows=4)
    longer = [sequence(tokens(14, seed=i), max_new_tokens=40, k=4) for i in range(4)]
    run(engine, *longer)
    assert engine.stats.preemptions > 0
    for one in longer:
        assert_as_alone(one)


def test_the_oldest_never_gives_way():
    engine = scheduler(pages=5, rows=4)
    first, *others = [sequence(tokens(14, seed=i), max_new_tokens=40, k=4) for i in range(4)]
    for one in (first, *others):
        engine.submit(one)
    while not first.finished:
        before = len(first.tokens)
        engine.step()
        assert len(first.tokens) == before + 1
    while engine.busy:
        engine.step()


def test_nobody_overtakes_one_that_waits():
    engine = scheduler(pages=PAGES, rows=4)
    large = sequence(tokens(50), max_new_tokens=40)
    early, small = sequence(tokens(50, seed=3), max_new_tokens=40), sequence([5], max_new_tokens=1)
    for one in (early, large, small):
        engine.submit(one)
    while not large.tokens:
        assert not small.tokens
        engine.step()
    while engine.busy:
        engine.step()
    for one in (early, large, small):
        assert_as_alone(one)


def test_a_long_prompt_does_not_stall_those_that_decode():
    engine = scheduler(pages=12, fill=8)
    first, long = sequence([5, 6], max_new_tokens=12), sequence(tokens(60), max_new_tokens=4)
    engine.submit(first)
    engine.step()
    engine.submit(long)
    for _ in range(7):
        assert not long.tokens
        before = len(first.tokens)
        engine.step()
        assert len(first.tokens) == before + 1
        assert long.texts[0].cached_tokens <= 8 * before
    while engine.busy:
        engine.step()
    assert_as_alone(first)
    assert_as_alone(long)


def test_what_cannot_ever_fit_is_refused_with_the_numbers():
    engine = scheduler(pages=3)
    with refuses(CapacityError, "40 tokens", "9 new", "49 together", "holds 48", "at most 8"):
        engine.submit(sequence(tokens(40), max_new_tokens=9))
    assert not engine.busy
    (one,) = run(engine, sequence(tokens(40), max_new_tokens=8))
    assert_as_alone(one)


# ---- shared pages --------------------------------------------------------------------------------


def test_requests_that_begin_alike_store_their_beginning_once():
    pair = decoder()
    engine = scheduler(pair, pages=40)
    head = tokens(2 * PAGE_SIZE + 3)
    requests = [sequence([*head, 5 + i, 9], k=3, max_new_tokens=2) for i in range(4)]
    counted, hook = rows_of(pair.reward_model)
    run(engine, *requests)
    hook.remove()
    prefills = [rows for rows in counted if rows not in (3, 6, 9, 12)]
    assert prefills == [len(head) + 2] + [5] * 3
    assert engine.stats.shared_tokens == 3 * 2 * PAGE_SIZE
    assert engine.stats.prompt_tokens == 4 * (len(head) + 2)
    for one in requests:
        assert_as_alone(one)


def test_shared_pages_are_held_once():
    engine = scheduler(pages=40)
    head = tokens(2 * PAGE_SIZE + 3)
    requests = [sequence([*head, 5 + i], k=3) for i in range(3)]
    for one in requests:
        engine.submit(one)
    engine.step()
    assert engine.pool.pages_in_use == 2 + 3
    assert len({tuple(one.pages[:2]) for one in requests}) == 1
    while engine.busy:
        engine.step()


def test_shared_pages_are_never_written_again():
    pair = decoder()
    engine = scheduler(pair, pages=40)
    head = tokens(2 * PAGE_SIZE + 1)
    first, second = (sequence(head, k=3, w=w, max_new_tokens=20) for w in (1.5, -2.0))
    engine.submit(first)
    engine.step()
    shared = first.pages[: first.texts[0].registered[0]]
    before = [cache.k_pages[:, shared].clone() for cache in engine.caches]
    engine.submit(second)
    while engine.busy:
        engine.step()
        assert second.finished or second.pages[: len(shared)] == shared
        for cache, pages in zip(engine.caches, before, strict=True):
            assert torch.equal(cache.k_pages[:, shared], pages)
    assert_as_alone(first)
    assert_as_alone(second)
    assert first.tokens != second.tokens


def test_a_page_that_was_never_written_is_not_found():
    engine = scheduler(pages=40, fill=PAGE_SIZE + 2)
    engine.hold_prefixes = True
    busy, called_off = sequence([5], max_new_tokens=40), sequence(tokens(60), k=3)
    for one in (busy, called_off):
        engine.submit(one)
    engine.step()
    assert 0 < called_off.texts[0].cached_tokens < 2 * PAGE_SIZE
    engine.cancel(called_off)
    (later,) = run(engine, sequence(tokens(60), k=3))
    assert engine.stats.shared_tokens == PAGE_SIZE
    assert_as_alone(later)


def test_the_page_that_is_written_next_is_ones_own():
    # The language model's row of the last prompt token is written by the first step.
    engine = scheduler(pages=40)
    head = tokens(2 * PAGE_SIZE)
    first, second = (sequence(head, k=3, w=w, max_new_tokens=20) for w in (1.5, -2.0))
    engine.submit(first)
    engine.step()
    assert first.texts[0].registered[0] == 2
    engine.submit(second)
    engine.step()
    assert second.pages[0] == first.pages[0]
    assert not set(second.pages[1:]) & set(first.pages)
    while engine.busy:
        engine.step()
    assert_as_alone(first)
    assert_as_alone(second)


def test_pages_without_rewards_are_no_prefix_for_those_with():
    # What greedy decoding stored is in the language model's cache only.
    engine = scheduler(pages=40)
    engine.hold_prefixes = True
    head = tokens(40)
    for options in ({"k": 1}, {"k": 4}, {"k": 4, "w": 0.0}, {"k": 6}):
        (one,) = run(engine, sequence(head, **options))
        assert_as_alone(one)
    assert engine.stats.shared_tokens == 2 * 2 * PAGE_SIZE


def test_an_answer_is_a_prefix_of_the_next_question():
    engine = scheduler(pages=40)
    engine.hold_prefixes = True
    (one,) = run(engine, sequence(tokens(10), k=4, max_new_tokens=30))
    (two,) = run(engine, sequence([*one.ids, 7, 8, 9], k=4, max_new_tokens=5))
    assert engine.stats.shared_tokens == 2 * PAGE_SIZE
    assert_as_alone(two)


def test_nothing_is_remembered_when_all_is_done():
    # Between two decodes the models are the caller's, who may train them.
    engine = scheduler(pages=40)
    run(engine, sequence(tokens(40)))
    run(engine, sequence(tokens(40)))
    assert engine.stats.shared_tokens == 0


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 9, 40])
def test_a_sequence_costs_one_prefix_and_k_rows(k):
    engine = scheduler(pages=40, rows=1)
    one = sequence(tokens(40), k=k, max_new_tokens=10)
    engine.submit(one)
    while engine.busy:
        engine.step()
        if one.pages:
            assert engine.pool.pages_in_use == len(one.pages) == -(-len(one.ids) // PAGE_SIZE)
    rows = next(iter(engine.bursts.runners.values())).memory.blocks
    held = rows["reward keys"].nbytes + rows["reward values"].nbytes
    assert held == k * decoder().engine.panel.rewards["reward"].layout.bytes_per_token
    assert_as_alone(one)


def addresses(engine):
    memory = {
        (runner.key, name): piece.data_ptr()
        for runner in engine.bursts.runners.values()
        for name, piece in runner.memory.blocks.items()
    }
    pools = [x.data_ptr() for cache in engine.caches for x in (cache.k_pages, cache.v_pages)]
    return memory, pools


def test_nothing_moves_while_requests_come_and_go():
    engine = scheduler(pages=40, padded=True, steps=4)
    kinds = ({"k": 9}, {"k": 9, "temperature": 0.7}, {"k": 4}, {"k": 1}, {"w": 0.0, "k": 3})
    first = [sequence(tokens(50, seed=i), max_new_tokens=40, **kinds[i % 5]) for i in range(5)]
    run(engine, *first)
    at = addresses(engine)
    later = [sequence(tokens(2 + 7 * i, seed=i), **kinds[i % 5]) for i in range(7)]
    run(engine, *later)
    assert addresses(engine) == at
    for one in (*first, *later):
        assert_as_alone(one)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("steps", [1, 8])
def test_rows_that_fill_up_a_batch_change_nothing(count, steps):
    kinds = ({"k": 9}, {"k": 4, "temperature": 0.7, "seed": 5}, {"k": 2, "w": -2.0}, {"k": 7})
    results = []
    for padded in (False, True):
        engine = scheduler(pages=40, padded=padded, steps=steps)
        requests = [sequence(tokens(15 + i), **kinds[i]) for i in range(count)]
        results.append([one.ids for one in run(engine, *requests)])
        for one in requests:
            assert_as_alone(one)
    assert results[0] == results[1]
