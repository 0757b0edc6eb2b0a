"""torch.compile of a step's rows: the same tokens, few graphs, and a reason where there is none."""

import asyncio
import copy

import oracle
import pytest
import torch
from refusals import refuses
from tiny_models import language_model, reward_model, tokens

from args_fast import ArgsDecoder, AsyncArgsDecoder, DecodingConfig
from args_fast.engine.graphs import StepGraphs
from args_fast.errors import ArgsError, CompileError, ConfigError, ProofError
from args_fast.models import compiled, linear
from args_fast.models.proof import prove
from args_fast.options import COMPILE_MODES


class Counting:
    """A backend of torch.compile that counts its graphs."""

    def __init__(self, backend="aot_eager"):
        self.backend = torch._dynamo.lookup_backend(backend)
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.backend(graph, inputs)


@pytest.fixture
def backend(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", Counting())
    yield compiled.BACKEND
    torch._dynamo.reset()


def compiled_pair(name="llama", layers=1, **options):
    models = language_model(name, layers), reward_model(name, layers)
    return ArgsDecoder(*models, torch_compile=True, **options)


def config(**options):
    return DecodingConfig(**{"k": 5, "max_new_tokens": 6, "eos_token_ids": []} | options)


# Batches of 1 to 5, page tables of 1 to 5 pages that grow while they are in use, candidates alike
# and mixed, argmax and draws, with the reward model and without.
WAVES = [
    [(3, {})],
    [(40, {"max_new_tokens": 30})],
    [(17, {}), (1, {}), (30, {"k": 9, "seed": 3, "temperature": 0.7})],
    [(9, {"k": k}) for k in (1, 2, 9, 5, 3)],
    [(60, {"k": 7}), (2, {"k": 7, "temperature": 2.0, "max_new_tokens": 20})],
    [(12, {"w": 0.0}), (13, {"w": 0.0})],
    [(31, {"k": 2})],
]
# For models of which no op is in doubt: one text over a page's end, and a mixed batch.
SHORT = [[(40, {"max_new_tokens": 10})], WAVES[2]]


def naive(pair, prompt, config):
    options = {name: getattr(config, name) for name in ("k", "w", "temperature", "seed")}
    models = pair.language_model, pair.reward_model
    return oracle.decode(*models, prompt, steps=config.max_new_tokens, **options)


def assert_as_the_oracle(pair, wave):
    prompts = [tokens(n, seed=i) for i, (n, _) in enumerate(wave)]
    configs = [config(**options) for _, options in wave]
    for prompt, one, result in zip(prompts, configs, pair.generate(prompts, configs), strict=True):
        wanted = naive(pair, prompt, one)
        assert result.token_ids == wanted.tokens
        for field in ("logprobs", "rewards", "scores"):
            expected = pytest.approx(getattr(wanted, field), abs=1e-4, rel=1e-4, nan_ok=True)
            assert getattr(result, field) == expected


# What they are compiled by, and layers: two where they differ.
ARCHITECTURES = {
    "llama": ("aot_eager", 1),
    "opt": ("aot_eager", 1),
    "gpt2": ("eager", 1),
    "gemma2": ("eager", 2),
    "qwen3": ("eager", 1),
    "gpt_neox": ("eager", 1),
    "gpt_oss": ("eager", 2),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_batch_decodes_as_the_oracle_does_with_two_graphs_a_model(backend, name):
    compiler, layers = ARCHITECTURES[name]
    backend.backend = torch._dynamo.lookup_backend(compiler)
    pair = compiled_pair(name, layers)
    assert backend.graphs == 2  # of one sequence, made by the proof
    for wave in WAVES if name == "llama" else SHORT:
        assert_as_the_oracle(pair, wave)
    assert backend.graphs == 4  # and of several


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_language_model_that_looks_ahead_has_graphs_for_its_candidates(backend, name):
    pair = compiled_pair(name, lookahead=True)
    assert backend.graphs == 3
    for wave in [WAVES[3], *SHORT]:
        assert_as_the_oracle(pair, wave)
    assert backend.graphs == 6


def test_models_of_different_numbers_of_layers_are_compiled(backend):
    """On torch 2.11 a number that differs between them was no constant to the compiler."""
    backend.backend = torch._dynamo.lookup_backend("eager")
    pair = ArgsDecoder(language_model("opt", 2), reward_model("opt", 3), torch_compile=True)
    assert_as_the_oracle(pair, WAVES[0])


def test_what_inductor_makes_decodes_as_the_oracle_does(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    lm, rm = language_model("llama", layers=1), reward_model("gpt2", layers=1)
    pair = ArgsDecoder(lm, rm, torch_compile="default")
    assert_as_the_oracle(pair, WAVES[0])
    assert_as_the_oracle(pair, WAVES[1])
    torch._dynamo.reset()


def test_decoders_of_one_class_do_not_use_up_each_others_graphs(backend, monkeypatch):
    backend.backend = torch._dynamo.lookup_backend("eager")
    monkeypatch.setattr(compiled, "GRAPHS", 2)  # what one model needs
    for number in (1, 2):
        lm, rm = language_model(layers=1, seed=number), reward_model(layers=1, seed=number)
        assert_as_the_oracle(ArgsDecoder(lm, rm, torch_compile=True), WAVES[2])
        assert backend.graphs == 4 * number


def test_the_language_model_takes_several_rows_as_well(backend):
    pair = compiled_pair()
    for rows in (3, 2, 7):
        prove(pair.engine.lm, logits=True, branches=rows)
    assert backend.graphs == 3


def test_weights_are_read_at_every_step(backend):
    pair = ArgsDecoder(
        copy.deepcopy(language_model()), copy.deepcopy(reward_model()), torch_compile=True
    )
    assert_as_the_oracle(pair, WAVES[0])
    with torch.no_grad():
        for model in (pair.language_model, pair.reward_model):
            for weight in model.parameters():
                weight.mul_(1.1)
    assert_as_the_oracle(pair, WAVES[0])
    for model in (pair.language_model, pair.reward_model):
        model.to(torch.float64).to(torch.float32)  # other memory
    assert_as_the_oracle(pair, WAVES[0])
    assert backend.graphs == 2


def test_an_async_decoder_decodes_with_graphs_made_elsewhere(backend):
    pair = compiled_pair()

    async def decode():
        async with AsyncArgsDecoder(pair) as serving:
            return [token.token_id async for token in serving.stream(tokens(9), config())]

    assert asyncio.run(decode()) == naive(pair, tokens(9), config()).tokens
    assert backend.graphs == 2


def test_a_shape_is_compiled_before_it_is_captured(backend):
    class Watched(StepGraphs):
        replays = 0

        def _capture(self, function):
            def replay():
                before = backend.graphs
                function()
                assert backend.graphs == before
                Watched.replays += 1

            return replay

    pair = compiled_pair()
    for runner in (pair.engine.bursts.runner("reward"), pair.engine.bursts.runner(())):
        runner.graphs, runner._padded = Watched(enabled=True), True
    for wave in SHORT * 2:
        assert_as_the_oracle(pair, wave)
    assert Watched.replays > 15
    assert backend.graphs == 4


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_linear_layers_that_are_routed_are_part_of_the_graph(backend, monkeypatch, factor):
    def routed(x, weight, bias):
        out = x @ weight.T if bias is None else x @ weight.T + bias
        return out * factor if torch.compiler.is_compiling() else out

    monkeypatch.setattr("args_fast.models.backbone.few_rows", lambda device: linear.FewRows(routed))
    if factor == 2.0:  # were the layers not routed, nobody would notice
        with refuses(ProofError, "the language model"):
            compiled_pair("opt")
        return
    assert_as_the_oracle(compiled_pair("opt"), WAVES[1])
    assert backend.graphs == 2


# ---- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune", "fast", 3, None])
def test_other_modes_are_refused_before_anything_is_done(mode):
    with refuses(ConfigError, repr(mode), "max-autotune-no-cudagraphs", "CUDA graphs of their own"):
        ArgsDecoder(None, None, torch_compile=mode)


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_modes_are_handed_on(monkeypatch, mode):
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: asked.append(options) or function
    )
    pair = ArgsDecoder(language_model(), reward_model(), torch_compile=mode)
    assert {options["mode"] for options in asked} == {mode}
    assert all(options["fullgraph"] for options in asked)
    assert_as_the_oracle(pair, WAVES[0])


@pytest.mark.parametrize("broken", ["language model", "reward model"])
def test_a_model_that_is_not_one_graph_is_refused_at_load(backend, broken):
    lm, rm = copy.deepcopy(language_model()), copy.deepcopy(reward_model())
    norm = (lm if broken == "language model" else rm).model.norm
    forward = norm.forward

    def breaks(x):
        torch._dynamo.graph_break()
        return forward(x)

    norm.forward = breaks
    named = f"the {broken} (Llama", "one graph", "torch_compile=False"
    with refuses(CompileError, *named, "Explanation: ", "in breaks") as caught:
        ArgsDecoder(lm, rm, torch_compile=True)
    assert isinstance(caught.value, ArgsError)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    ArgsDecoder(lm, rm).generate(tokens(3), config())  # as it is, it decodes


def test_a_compiler_that_fails_is_named(monkeypatch):
    def fails(graph, inputs):
        raise OSError("no compiler here")

    monkeypatch.setattr(compiled, "BACKEND", fails)
    with refuses(CompileError, "the language model", "no compiler here", "torch_compile=False"):
        compiled_pair()
    torch._dynamo.reset()


def test_a_compiler_that_is_wrong_fails_the_proof(monkeypatch):
    def wrong(graph, inputs):
        return lambda *args: [2 * x if x.is_floating_point() else x for x in graph(*args)]

    monkeypatch.setattr(compiled, "BACKEND", wrong)
    with refuses(ProofError, "the language model", "other outputs"):
        compiled_pair()
    torch._dynamo.reset()


def test_more_graphs_than_are_allowed_are_an_error_that_says_so(backend, monkeypatch):
    monkeypatch.setattr(compiled, "GRAPHS", 1)
    pair = compiled_pair()
    assert_as_the_oracle(pair, WAVES[1])
    with refuses(CompileError, "the language model", "limit"):
        pair.generate([tokens(3), tokens(4)], config())
    assert_as_the_oracle(pair, WAVES[1])
