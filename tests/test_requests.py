"""Requests of every kind through the public decoder: mixed options, samples, endless streams."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from refusals import refuses
from tiny_models import LENGTH, VOCABULARY, decoder, language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig, Generation
from args_fast.errors import CapacityError, ConfigError, LengthError, NonFiniteError, PromptError
from args_fast.kvcache.storage import PAGE_SIZE

CONFIG = DecodingConfig(k=7, w=1.5, max_new_tokens=20, eos_token_ids=[])
SAMPLED = dataclasses.replace(CONFIG, temperature=2.0, seed=3)
KINDS = [
    CONFIG,
    SAMPLED,
    dataclasses.replace(CONFIG, k=1),
    dataclasses.replace(CONFIG, k=3, w=-2.0, max_new_tokens=7),
    dataclasses.replace(SAMPLED, w=0.0, k=30, max_new_tokens=31),
    dataclasses.replace(SAMPLED, k=VOCABULARY, seed=9),
]
REQUESTS = [(tokens(1 + 5 * i, seed=i), KINDS[i % len(KINDS)]) for i in range(10)]
TOKEN_BYTES = sum(cache.layout.bytes_per_token for cache in decoder().engine.caches)


def own(tokens=None, **options):
    """A decoder whose cache holds this many tokens."""
    if tokens is not None:
        options["cache_bytes"] = (tokens + PAGE_SIZE) * TOKEN_BYTES
    return ArgsDecoder(language_model(), reward_model(), **options)


def alone(prompt, config):
    return decoder().generate(prompt, config)[0]


def assert_same(result, wanted):
    assert result.token_ids == wanted.token_ids
    assert result.finish_reason == wanted.finish_reason
    assert result.prompt_token_ids == wanted.prompt_token_ids
    for field in ("logprobs", "rewards", "scores"):
        got = getattr(result, field)
        assert got == pytest.approx(getattr(wanted, field), abs=1e-4, nan_ok=True)


@pytest.mark.parametrize(("k", "w"), [(1, 1.5), (1, 0.0), (5, 0.0), (5, 1.5)])
def test_a_score_is_not_known_only_where_w_r_is_and_is_not_computed(k, w):
    config = dataclasses.replace(CONFIG, k=k, w=w, max_new_tokens=4)
    for results in (
        decoder().generate([tokens(4)], config),
        decoder().generate([tokens(4), tokens(9)], [config, CONFIG])[:1],
    ):
        (result,) = results
        assert not any(map(math.isnan, result.logprobs))
        assert all(map(math.isnan, result.scores)) == (k == 1 and w != 0)
        assert all(map(math.isnan, result.rewards)) == (k == 1 or w == 0)
        if w == 0:
            assert result.scores == result.logprobs


# ---- options of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 64])
def test_one_batch_mixes_every_option(size):
    prompts, configs = zip(*REQUESTS, strict=True)
    results = own(max_batch_size=size).generate(list(prompts), list(configs))
    for result, request in zip(results, REQUESTS, strict=True):
        assert_same(result, alone(*request))


def test_greedy_beside_the_guided_runs_no_reward_model():
    pair = own()
    rows = []
    hook = pair.reward_model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: rows.append(tuple(args[0].shape))
    )
    pair.generate([tokens(9), tokens(5)], [CONFIG, dataclasses.replace(CONFIG, k=1)])
    hook.remove()
    assert rows == [(1, 9)] + [(1, 7)] * 20


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_options_as_prompts(count):
    with refuses(ConfigError, f"a list of {count} for 2 prompts", "one for all"):
        decoder().generate([[5], [6]], [CONFIG] * count)


# ---- samples -------------------------------------------------------------------------------------


def test_samples_draw_with_seeds_that_follow_one_another():
    prompts = [tokens(40), tokens(3, seed=8)]
    pair = own()
    results = pair.generate(prompts, dataclasses.replace(SAMPLED, num_return_sequences=3))
    expected = [
        alone(prompt, dataclasses.replace(SAMPLED, seed=SAMPLED.seed + i))
        for prompt, i in itertools.product(prompts, range(3))
    ]
    assert len({tuple(e.token_ids) for e in expected}) == 6
    for result, wanted in zip(results, expected, strict=True):
        assert_same(result, wanted)
    assert pair.cache.shared_tokens == 2 * 2 * PAGE_SIZE  # of 40 tokens, for two more samples


def test_seeds_end_where_the_generators_do():
    DecodingConfig(seed=2**63 - 3, num_return_sequences=3)
    with refuses(ConfigError, f"seed is {2**63 - 2}", f"from 0 to {2**63 - 3}"):
        DecodingConfig(seed=2**63 - 2, num_return_sequences=3)
    for bad in (0, -1, 1.0, True, None):
        with refuses(ConfigError, f"num_return_sequences is {bad!r}", "from 1 to"):
            DecodingConfig(num_return_sequences=bad)


def test_a_stream_is_of_one_sample():
    with refuses(ConfigError, "num_return_sequences is 2", "Use generate"):
        decoder().stream([5], DecodingConfig(num_return_sequences=2))


# ---- a stream of requests ------------------------------------------------------------------------


def test_requests_are_completed_as_they_end_each_under_its_number():
    results = dict(own(max_batch_size=3).complete(REQUESTS))
    assert sorted(results) == list(range(len(REQUESTS)))
    for index, request in enumerate(REQUESTS):
        assert_same(results[index], alone(*request))
    long, short = dataclasses.replace(CONFIG, max_new_tokens=40), CONFIG
    order = [index for index, _ in own().complete([([5], long), ([6], short)])]
    assert order == [1, 0]


def test_a_request_that_cannot_be_decoded_is_an_error_among_results():
    requests = [
        ([5, 6], CONFIG),
        ([], CONFIG),
        ([5, VOCABULARY], CONFIG),
        ("text", CONFIG),
        (None, CONFIG),
        (tokens(LENGTH), CONFIG),
        (tokens(60), CONFIG),
        ([5], DecodingConfig(k=VOCABULARY + 1)),
        ([7, 8], CONFIG),
    ]
    pair = own(tokens=4 * PAGE_SIZE)
    results = dict(pair.complete(requests))
    kinds = [type(results[i]) for i in range(len(requests))]
    bad = [PromptError, PromptError, PromptError, PromptError]
    assert kinds == [Generation, *bad, LengthError, CapacityError, ConfigError, Generation]
    assert_same(results[8], alone([7, 8], CONFIG))
    assert pair.cache.pages_in_use == 0


def test_a_broken_reward_is_the_error_of_those_who_asked_for_it():
    pair = ArgsDecoder(language_model(), copy.deepcopy(reward_model()))
    pair.reward_model.score.weight.data.fill_(float("nan"))
    greedy = dataclasses.replace(CONFIG, k=1)
    results = dict(pair.complete([([5], CONFIG), ([6], greedy), ([7], CONFIG)]))
    assert [type(results[i]) for i in range(3)] == [NonFiniteError, Generation, NonFiniteError]
    assert_same(results[1], alone([6], greedy))


def test_a_head_that_is_replaced_between_decodes_judges_the_next():
    pair = ArgsDecoder(language_model(), copy.deepcopy(reward_model()))
    (before,) = pair.generate([5], CONFIG)
    head = pair.reward_model.score
    head.weight = torch.nn.Parameter(-head.weight.detach())
    (after,) = pair.generate([5], CONFIG)
    assert before.token_ids != after.token_ids
    assert after.rewards == pytest.approx(pair.token_rewards([5], after.token_ids), abs=1e-4)


def test_samples_of_a_request_come_in_a_row():
    config = dataclasses.replace(SAMPLED, num_return_sequences=2)
    got = list(own().complete([([5], config), ([6], CONFIG), ([7], config)]))
    indices = [index for index, _ in got]
    assert [index for index, _ in itertools.groupby(indices)] == list(dict.fromkeys(indices))
    for index, prompt in ((0, [5]), (2, [7])):
        samples = [result for i, result in got if i == index]
        for i, sample in enumerate(samples):
            assert_same(sample, alone(prompt, dataclasses.replace(SAMPLED, seed=3 + i)))


def test_requests_are_pulled_as_there_is_room():
    pulled, done = 0, 0

    def endless():
        nonlocal pulled
        for i in itertools.count():
            pulled += 1
            yield tokens(3, seed=i), dataclasses.replace(CONFIG, max_new_tokens=2 + i % 5)

    pair = own(max_batch_size=3)
    run = pair.complete(endless())
    for done in range(1, 20):
        next(run)
        assert pulled - done <= 2 * 3
    run.close()
    assert done == 19
    assert pair.cache.pages_in_use == 0
    assert not pair.engine.busy


def test_an_iterable_that_fails_gives_the_pages_back():
    def broken():
        yield [5], CONFIG
        raise OSError("made up")

    pair = own()
    with pytest.raises(OSError, match="made up"):
        list(pair.complete(broken()))
    assert pair.cache.pages_in_use == 0
    assert not pair.engine.busy


# ---- the cache -----------------------------------------------------------------------------------


def test_the_cache_says_what_fits():
    pair = own(tokens=10 * PAGE_SIZE)
    assert (pair.cache.pages, pair.cache.tokens) == (10, 10 * PAGE_SIZE)
    assert pair.cache.bytes == 11 * PAGE_SIZE * TOKEN_BYTES  # with the scratch page
    assert pair.cache.sequences(PAGE_SIZE) == 10
    assert pair.cache.sequences(PAGE_SIZE + 1) == 5
    assert pair.cache.sequences(11 * PAGE_SIZE) == 0
    assert pair.cache.shared == 0.0
    pair.generate([[*tokens(32), i] for i in range(3, 7)], CONFIG)
    assert pair.cache.prompt_tokens == 4 * 33
    assert pair.cache.shared == pytest.approx(3 * 32 / (4 * 33))


def test_a_cache_is_no_larger_than_all_rows_could_use():
    assert own(max_batch_size=2).cache.pages == 2 * LENGTH // PAGE_SIZE


def test_a_small_cache_gives_the_same_tokens():
    pair = own(tokens=5 * PAGE_SIZE)
    long = dataclasses.replace(CONFIG, max_new_tokens=40)
    prompts = [tokens(14, seed=i) for i in range(6)]
    for result, prompt in zip(pair.generate(prompts, long), prompts, strict=True):
        assert_same(result, alone(prompt, long))
    assert pair.cache.preemptions > 0
    assert pair.cache.pages_in_use == 0


def test_what_does_not_fit_the_cache_is_refused_before_any_work():
    pair = own(tokens=3 * PAGE_SIZE)
    said = ["40 tokens", "9 new", "49 together", "holds 48", "at most 8", "cache_bytes"]
    config = dataclasses.replace(CONFIG, max_new_tokens=9)
    with refuses(CapacityError, *said):
        pair.generate([[5], tokens(40)], config)
    with refuses(CapacityError, *said):
        pair.stream(tokens(40), config)
    assert not pair.engine.busy


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, math.nan])
def test_a_fraction_of_the_memory(fraction):
    with refuses(ConfigError, f"memory_fraction is {fraction}", "at most 1"):
        own(memory_fraction=fraction)


@pytest.mark.parametrize("size", [0, -1, PAGE_SIZE * TOKEN_BYTES, 2 * PAGE_SIZE * TOKEN_BYTES - 1])
def test_a_cache_without_a_page(size):
    with refuses(ConfigError, f"cache_bytes is {size}", f"at least {2 * PAGE_SIZE * TOKEN_BYTES}"):
        own(cache_bytes=size)


# ---- progress ------------------------------------------------------------------------------------


def test_a_bar_counts_requests_tokens_and_rewards(capfd):
    prompts, configs = zip(*REQUESTS, strict=True)
    results = own().generate(list(prompts), list(configs), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{len(REQUESTS)}/{len(REQUESTS)}" in err
    assert "tokens/s" in err
    rewards = [r for result in results for r in result.rewards if not math.isnan(r)]
    assert f"mean reward {sum(rewards) / len(rewards):+.2f}" in err


def test_no_bar_unless_it_is_asked_for(capfd):
    own().generate([5], CONFIG)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("eos", [3.7, "2", [2, None]])
def test_end_tokens_of_the_model_that_are_not_ids_are_refused(eos):
    lm = copy.deepcopy(language_model())
    lm.generation_config.eos_token_id = eos
    decoder = ArgsDecoder(lm, reward_model())
    with refuses(ConfigError, f"eos_token_id is {eos!r}", "generation_config.json", "--eos"):
        decoder.generate(tokens(9), DecodingConfig(k=2, max_new_tokens=2))
    decoder.generate(tokens(9), DecodingConfig(k=2, max_new_tokens=2, eos_token_ids=[2]))
