"""The engine on a device against the oracle on the CPU, in float32.

The device is CUDA, or the CPU with a stand-in for graphs where there is no GPU: that is how these
tests are themselves tested.
"""

import copy
import functools
import os

import oracle
import pytest
import torch
from recorded import record
from tiny_models import language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.engine.engine import Engine

DEVICE = os.environ.get("ARGS_FAST_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
REQUESTS = 1000 if DEVICE == "cuda" else 30
MARGIN = 1e-4  # closer alternatives than this may go either way between two devices
STEPS = 21
KINDS = (
    {"k": 7},
    {"k": 7, "temperature": 0.7, "seed": 3},
    {"k": 3, "w": -2.0},
    {"k": 1},
    {"k": 5, "w": 0.0},
)


@pytest.fixture(autouse=True, scope="module")
def float32():
    """As it is written, not as TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@functools.cache
def pair(name, lookahead, graphs):
    lm = copy.deepcopy(language_model(name)).to(DEVICE)
    rm = copy.deepcopy(reward_model(name)).to(DEVICE)
    made = ArgsDecoder(lm, rm, lookahead=lookahead, cuda_graphs=graphs, cache_bytes=2**24)
    if DEVICE == "cpu":
        most = made.engine.bursts.runner("reward").lookahead
        options = {"steps": 8, "in_flight": 1, "padded": True, "lookahead": most}
        made.engine = Engine(made.engine.lm, made.engine.panel.rewards, pages=60, rows=8, **options)
        if graphs:
            record(made.engine)
    return made


@functools.cache
def expected(name, length, seed, options):
    options = {"w": 1.5} | dict(options)
    lm, rm = language_model(name), reward_model(name)
    return oracle.decode(lm, rm, tokens(length, seed=seed), steps=STEPS, **options)


def config(options, steps=STEPS):
    return DecodingConfig(max_new_tokens=steps, eos_token_ids=[], **options)


def check(made, name, requests):
    """Decode (length, seed, options) together, and compare those with a margin."""
    prompts = [tokens(length, seed=seed) for length, seed, _ in requests]
    results = made.generate(prompts, [config(options) for _, _, options in requests])
    compared = 0
    for result, (length, seed, options) in zip(results, requests, strict=True):
        wanted = expected(name, length, seed, tuple(options.items()))
        if wanted.margin > MARGIN:
            compared += 1
            assert result.token_ids == wanted.tokens
            for field in ("logprobs", "rewards", "scores"):
                naive = getattr(wanted, field)
                assert getattr(result, field) == pytest.approx(naive, abs=1e-3, nan_ok=True)
    return compared


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gemma2", "qwen3", "mistral"])
def test_the_tokens_are_the_oracles(name, lookahead, graphs):
    made = pair(name, lookahead, graphs)
    compared = 0
    for count in (1, 2, 5):
        requests = [(3 + 9 * i, i, KINDS[i % len(KINDS)]) for i in range(count)]
        for _ in range(3):  # as it is, captured, replayed
            compared += check(made, name, requests)
    assert compared >= 15


@pytest.mark.parametrize("lookahead", [True, False])
def test_one_captured_engine_serves_request_after_request(lookahead):
    made, plain = pair("llama", lookahead, True), pair("llama", lookahead, False)
    requests = [(1 + 7 * i % 40, i, KINDS[i % len(KINDS)]) for i in range(20)]
    wanted = [
        plain.generate(tokens(length, seed=seed), config(options))[0].token_ids
        for length, seed, options in requests
    ]
    held = 0
    for number in range(REQUESTS):
        length, seed, options = requests[number % len(requests)]
        (result,) = made.generate(tokens(length, seed=seed), config(options))
        assert result.token_ids == wanted[number % len(requests)], number
        assert not any(x != x for x in result.logprobs), number
        if DEVICE == "cuda" and number >= 2 * len(requests):  # all shapes are captured
            now = torch.cuda.memory_allocated()
            held = held or now
            assert now <= held, number
    assert made.cache.pages_in_use == 0


@functools.cache
def pair_in_16_bits(lookahead, graphs, fused="auto"):
    lm, rm = (
        copy.deepcopy(model).to(DEVICE, torch.bfloat16)
        for model in (language_model("llama"), reward_model("llama"))
    )
    options = {"lookahead": lookahead, "cuda_graphs": graphs, "fused_layers": fused}
    return ArgsDecoder(lm, rm, cache_bytes=2**24, **options)


def figures(result):
    return result.token_ids, result.logprobs, result.rewards


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("length", [9, 90])  # 90: the prefix is split over blocks
def test_every_replay_has_the_same_bits_and_those_of_the_eager_step(lookahead, length):
    prompt, options = tokens(length, seed=length), config(KINDS[0], steps=6)
    for make in (pair_in_16_bits, functools.partial(pair, "llama")):
        replayed, eager = make(lookahead, True), make(lookahead, False)
        (wanted,) = eager.generate(prompt, options)
        for number in range(200 if DEVICE == "cuda" else 4):
            (result,) = replayed.generate(prompt, options)
            assert figures(result) == figures(wanted), number
        for runner in replayed.engine.bursts.runners.values():
            assert runner.graphs.failure is None


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_lookahead_in_16_bits_takes_the_tokens_of_the_plain_order(fused, graphs):
    """Up to the first choice between two that rounding could exchange. One way for all passes, as
    by default those of lookahead have more rows, and the two ways round differently."""
    prompts, rounding = [tokens(n, seed=n) for n in (5, 40, 90)], 0.05
    options = [config(KINDS[0] | {"return_candidates": c}, steps=6) for c in (False, True)]
    ahead = pair_in_16_bits(True, graphs, fused).generate(prompts, options[0])
    plain = pair_in_16_bits(False, graphs, fused).generate(prompts, options[1])
    compared = 0
    for one, two in zip(ahead, plain, strict=True):
        for i, candidates in enumerate(two.candidates):
            scores = {candidate.token_id: candidate.score for candidate in candidates}
            taken, wanted = one.token_ids[i], two.token_ids[i]
            if taken != wanted:
                assert scores[wanted] - scores[taken] < 4 * rounding
                break
            assert one.logprobs[i] == pytest.approx(two.logprobs[i], abs=rounding)
            assert one.rewards[i] == pytest.approx(two.rewards[i], abs=rounding)
            compared += 1
    assert compared >= 8


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has nothing to wait for")
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("lookahead", [True, False])
def test_the_host_never_waits_while_it_launches(lookahead, graphs):
    made = pair("llama", lookahead, graphs)
    for _ in range(2):  # whatever is compiled, captured and allocated once
        made.generate(tokens(9), config(KINDS[0]))
        made.generate([tokens(9), tokens(30)], config(KINDS[0]))

    def strict(function):
        def strictly(*arguments):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return strictly

    runner, filler = made.engine.bursts.runner("reward"), made.engine._filler
    runner.launch, filler._store = strict(runner.launch), strict(filler._store)
    try:
        made.generate(tokens(9), config(KINDS[0]))
        made.generate([tokens(9), tokens(30)], config(KINDS[0]))
    finally:
        del runner.launch, filler._store
