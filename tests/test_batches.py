"""Many prompts at once: each gets what it gets alone, and nothing stays behind."""

import copy
import dataclasses
import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import decoder, language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.kvcache.storage import PAGE_SIZE

CONFIG = DecodingConfig(k=7, w=1.5, max_new_tokens=20, eos_token_ids=[])
SAMPLED = DecodingConfig(k=7, w=1.5, temperature=0.7, seed=3, max_new_tokens=20, eos_token_ids=[])
PAIRS = [("llama", "llama"), ("opt", "gpt2"), ("gemma2", "mistral"), ("gpt_oss", "gpt_neox")]
LENGTHS = [1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE, 3, 1]
PROMPTS = [tokens(n, seed=i) for i, n in enumerate(LENGTHS)]


def alone(pair, prompts, config):
    return [pair.generate(prompt, config)[0] for prompt in prompts]


def assert_same(results, expected):
    assert [r.token_ids for r in results] == [e.token_ids for e in expected]
    assert [r.finish_reason for r in results] == [e.finish_reason for e in expected]
    assert [r.prompt_token_ids for r in results] == [e.prompt_token_ids for e in expected]
    for result, wanted in zip(results, expected, strict=True):
        for field in ("logprobs", "rewards", "scores"):
            got = getattr(result, field)
            assert got == pytest.approx(getattr(wanted, field), abs=1e-4, nan_ok=True)


def in_use(pair):
    return pair.cache.pages_in_use


@pytest.mark.parametrize("config", [CONFIG, SAMPLED], ids=["argmax", "sampled"])
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_batch_gives_each_prompt_its_own_tokens(names, config):
    # Greedy that flattens batch x k picks one winner for all prompts.
    pair = decoder(*names)
    expected = alone(pair, PROMPTS, config)
    assert len({tuple(e.token_ids) for e in expected}) == len(PROMPTS)
    assert_same(pair.generate(PROMPTS, config), expected)
    assert_same(pair.generate(PROMPTS[::-1], config), expected[::-1])
    assert in_use(pair) == 0


def test_one_prompt_in_a_batch_twice_gives_the_same_tokens_twice():
    pair = decoder()
    for config in (CONFIG, SAMPLED):
        first, other, second = pair.generate([PROMPTS[3], PROMPTS[1], PROMPTS[3]], config)
        assert first.token_ids == second.token_ids != other.token_ids


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=2, max_size=5),
    st.sampled_from([CONFIG, SAMPLED]),
    st.data(),
)
def test_sequences_that_end_leave_the_others_alone(drawn, config, data):
    pair = decoder("opt", "llama", layers=(1, 1))
    config = dataclasses.replace(config, max_new_tokens=10)
    prompts = [tokens(length, seed=seed) for length, seed in drawn]
    free = alone(pair, prompts, config)
    ends = {
        data.draw(st.sampled_from(result.token_ids))
        for result in free[: data.draw(st.integers(1, 2))]
    }
    results = pair.generate(prompts, dataclasses.replace(config, eos_token_ids=ends))
    for result, unbound in zip(results, free, strict=True):
        at = [i for i, token in enumerate(unbound.token_ids) if token in ends]
        length = at[0] + 1 if at else 10
        assert result.token_ids == unbound.token_ids[:length]
        assert result.rewards == pytest.approx(unbound.rewards[:length], abs=1e-4)
        assert result.finish_reason == ("eos" if at else "length")


@pytest.mark.parametrize("new", [1, 2, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE + 1])
@pytest.mark.parametrize("length", [1, 2, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1])
def test_a_longer_run_begins_with_the_shorter_one_across_page_boundaries(length, new):
    pair = decoder()
    options = {"k": 5, "temperature": None, "eos_token_ids": []}
    (long,) = pair.generate(tokens(length), DecodingConfig(max_new_tokens=40, **options))
    (short,) = pair.generate(tokens(length), DecodingConfig(max_new_tokens=new, **options))
    assert short.token_ids == long.token_ids[:new]
    assert len(short.rewards) == new


@pytest.mark.parametrize("size", [1, 2, 3, len(PROMPTS), 64])
def test_a_list_longer_than_the_largest_batch_is_decoded_in_turns(size):
    pair = ArgsDecoder(language_model(), reward_model(), max_batch_size=size)
    batches = []
    hook = pair.reward_model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: batches.append(args[0].shape[0])
    )
    try:
        results = pair.generate(PROMPTS, CONFIG)
    finally:
        hook.remove()
    assert max(batches) == min(size, len(PROMPTS))
    assert_same(results, alone(decoder(), PROMPTS, CONFIG))


@pytest.mark.parametrize(
    ("prompts", "count"),
    [(PROMPTS[1], 1), (tuple(PROMPTS[1]), 1), ([PROMPTS[1]], 1), ((PROMPTS[1], PROMPTS[2]), 2)],
    ids=["ids", "tuple", "list of ids", "tuple of ids"],
)
def test_one_generation_per_prompt(prompts, count):
    results = decoder().generate(prompts, CONFIG)
    assert len(results) == count
    assert results[0].prompt_token_ids == PROMPTS[1]
    assert len(results[0].token_ids) == CONFIG.max_new_tokens


def test_options_left_out_are_the_defaults():
    pair, prompt = decoder(), tokens(LENGTHS[-1])
    config = DecodingConfig(max_new_tokens=90)
    assert pair.generate(prompt, config) == pair.generate(prompt, config)
    with pytest.raises(ValueError, match="128 new ones"):
        pair.generate(prompt)


# ---- nothing stays behind ------------------------------------------------------------------------


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_a_second_request_equals_the_first(names):
    pair = ArgsDecoder(language_model(names[0]), reward_model(names[1]))
    first = pair.generate(PROMPTS, CONFIG)
    size = pair.cache.bytes
    pair.generate([tokens(50, seed=8)], SAMPLED)  # leaves its keys and values in the pages
    assert pair.generate(PROMPTS, CONFIG) == first
    assert pair.cache.bytes == size  # pages are used again


def test_pages_that_hold_rubbish_change_nothing():
    pair = ArgsDecoder(language_model(), reward_model())
    expected = pair.generate(PROMPTS, CONFIG)
    for cache in pair.engine.caches:
        with torch.inference_mode():
            cache.k_pages.fill_(float("nan"))
            cache.v_pages.fill_(float("nan"))
    assert pair.generate(PROMPTS, CONFIG) == expected


@pytest.mark.parametrize("seen", [0, 1, 5])
def test_an_abandoned_stream_gives_its_pages_back(seen):
    pair = decoder()
    stream = pair.stream(PROMPTS[3], CONFIG)
    for _ in range(seen):
        next(stream)
    assert (in_use(pair) > 0) == (seen > 0)
    del stream
    gc.collect()
    assert in_use(pair) == 0


def test_a_failure_inside_a_model_gives_the_pages_back():
    pair = ArgsDecoder(copy.deepcopy(language_model()), reward_model())
    expected = pair.generate(PROMPTS, CONFIG)
    left = iter(range(12))

    def fail(*_):
        if next(left, None) is None:
            raise MemoryError("made up")

    hook = pair.language_model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        pair.generate(PROMPTS, CONFIG)
    hook.remove()
    assert in_use(pair) == 0
    assert pair.generate(PROMPTS, CONFIG) == expected


# ---- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, SAMPLED], ids=["argmax", "sampled"])
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_a_stream_yields_what_generate_returns(names, config):
    pair = decoder(*names)
    for prompt in PROMPTS[:3]:
        (expected,) = pair.generate(prompt, config)
        pieces = list(pair.stream(prompt, config))
        assert [piece.token_id for piece in pieces] == expected.token_ids
        assert [piece.logprob for piece in pieces] == expected.logprobs
        assert [piece.reward for piece in pieces] == expected.rewards
        assert [piece.score for piece in pieces] == expected.scores
        assert [piece.text for piece in pieces] == [None] * len(pieces)
        reasons = [piece.finish_reason for piece in pieces]
        assert reasons == [None] * (len(pieces) - 1) + [expected.finish_reason]


def test_two_streams_and_a_batch_may_be_interleaved():
    # Pages change hands while both streams are under way.
    pair = ArgsDecoder(language_model("opt"), reward_model("llama"))
    expected = alone(pair, PROMPTS, CONFIG)
    sampled = alone(pair, PROMPTS, SAMPLED)
    pair = ArgsDecoder(language_model("opt"), reward_model("llama"))
    one, two = pair.stream(PROMPTS[4], CONFIG), pair.stream(PROMPTS[1], SAMPLED)
    ones, twos = [next(one) for _ in range(3)], [next(two)]
    assert_same(pair.generate(PROMPTS, CONFIG), expected)
    for _ in range(15):
        twos.append(next(two))
        ones.append(next(one))
    assert_same(pair.generate(PROMPTS, SAMPLED), sampled)
    ones += one
    twos += two
    assert [piece.token_id for piece in ones] == expected[4].token_ids
    assert [piece.token_id for piece in twos] == sampled[1].token_ids
    assert in_use(pair) == 0


def test_the_callers_grad_mode_is_left_alone():
    pair = decoder()
    stream = pair.stream(PROMPTS[1], CONFIG)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()
    with torch.enable_grad():
        pair.generate(PROMPTS[1], CONFIG)
        assert torch.is_grad_enabled()
