"""Whole decodes with the decoder layers in Triton: the reference's tokens, and few launches."""

import copy

import lora
import oracle
import pytest
import tiny_models
import torch
import transformers as t
from launches import count_as_one, steps_recorded
from ways import rows_by_way

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.kernels import decoder_layers as kernels
from args_fast.kernels.device import OLDEST
from args_fast.models.fused import FusedLayers
from args_fast.ops import backends, cuda, plain, use_backend
from args_fast.ops import decoder_layers as op
from args_fast.rewards import Adapter

LAYERS = {"opt-2.7b": 32, "opt-350m": 24}
OF_A_LAYER = ("_project", "_attend", "_add", "_feed")


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT, "triton")


def decode(decoder, prompt, **config):
    (result,) = decoder.generate([prompt], DecodingConfig(eos_token_ids=[], **config))
    return result


# ---- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lm", "rm", "layers", "lookahead"),
    [("opt", "llama", 2, False), ("qwen3", "opt", 1, True), ("mistral", "gpt2", 1, False)],
)
def test_the_tokens_are_the_oracles(lm, rm, layers, lookahead):
    models = tiny_models.language_model(lm, layers), tiny_models.reward_model(rm, layers)
    decoder = ArgsDecoder(*models, fused_layers=True, lookahead=lookahead)
    reward = decoder.engine.panel.rewards["reward"]
    for backbone in (decoder.engine.lm, reward.backbone):  # the reward model goes the same way
        assert isinstance(backbone.fused_layers(), FusedLayers)
    prompt = tiny_models.tokens(9)
    expected = oracle.decode(*models, prompt, k=4, w=1.5, steps=2)
    assert expected.margin > 1e-4
    result = decode(decoder, prompt, k=4, w=1.5, max_new_tokens=2)
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)


@pytest.mark.parametrize(
    ("lm", "layers", "options", "lookahead"),
    [
        ("opt", 1, {}, False),
        ("gpt2", 1, {}, True),
        ("qwen3", 2, {"layers_to_transform": (1,)}, True),
    ],
)
def test_an_adapters_tokens_are_the_oracles(lm, layers, options, lookahead):
    """With lookahead in one pass with the language model, else in one of its own."""
    model, adapted = lora.pair(lm, layers, **options)
    decoder = ArgsDecoder(model, Adapter(adapted), fused_layers=True, lookahead=lookahead)
    (reward,) = decoder.engine.panel.rewards.values()
    assert reward.joins
    assert isinstance(reward.adapted.fused_layers(), FusedLayers)
    prompt = tiny_models.tokens(9)
    expected = oracle.decode(model, lora.of_text(adapted), prompt, k=4, w=1.5, steps=2)
    assert expected.margin > 1e-4
    result = decode(decoder, prompt, k=4, w=1.5, max_new_tokens=2)
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)


def test_ranks_that_the_kernels_do_not_take_are_left_to_the_modules():
    model, adapted = lora.pair(r=33)
    with pytest.warns(UserWarning, match="through its modules: .*rank up to 32, not 33"):
        decoder = ArgsDecoder(model, Adapter(adapted), fused_layers=True, lookahead=True)
    (reward,) = decoder.engine.panel.rewards.values()
    assert reward.adapted.fused_layers() is None
    assert decoder.engine.lm.fused_layers() is not None
    assert reward.joins


@pytest.mark.usefixtures("row_by_row")
def test_a_request_has_the_same_bits_alone_and_in_a_batch():
    models = (tiny_models.language_model("llama", 1), tiny_models.reward_model("opt", 1))
    decoder = ArgsDecoder(*(copy.deepcopy(m).bfloat16() for m in models), fused_layers=True)
    config = DecodingConfig(k=4, w=1.5, max_new_tokens=2, eos_token_ids=[])
    prompts = [tiny_models.tokens(length) for length in (18, 1)]
    together = decoder.generate(prompts, config)
    (alone,) = decoder.generate(prompts[:1], config)
    assert alone == together[0]  # tokens, and the last bit of every number


def test_embeddings_that_a_hook_waits_for_are_called():
    lm, rm = (
        copy.deepcopy(tiny_models.language_model("gpt2", 1)),
        tiny_models.reward_model("opt", 1),
    )
    decoder = ArgsDecoder(lm, rm, fused_layers=True)
    plain_tokens = decode(decoder, [5, 6, 7], k=1, max_new_tokens=2).token_ids
    calls = []
    handle = lm.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    assert decode(decoder, [5, 6, 7], k=1, max_new_tokens=2).token_ids == plain_tokens
    assert len(calls) >= 2
    del calls[:]
    handle.remove()
    with steps_recorded() as steps:
        decode(decoder, [5, 6, 7], k=1, max_new_tokens=2)
    assert "embedding" not in steps[-1]


# ---- what declines -------------------------------------------------------------------------------


def test_weights_that_the_kernels_do_not_take_are_left_to_the_modules():
    from args_fast.models.compact import quantize_linears

    lm, rm = (
        copy.deepcopy(make("llama"))
        for make in (tiny_models.language_model, tiny_models.reward_model)
    )
    quantize_linears(lm)
    with pytest.warns(UserWarning, match=r"through its modules: it takes float32.*torch\.int8"):
        decoder = ArgsDecoder(lm, rm, fused_layers=True)
    assert decoder.engine.lm.fused_layers() is None
    assert decoder.engine.panel.rewards["reward"].backbone.fused_layers() is not None


def test_auto_leaves_triton_out_where_it_was_not_measured():
    decoder = ArgsDecoder(tiny_models.language_model("opt"), tiny_models.reward_model("opt"))
    assert op.backend("cpu") == "triton"
    assert decoder.engine.lm.fused_layers() is None


def test_auto_runs_passes_of_a_tile_of_rows_and_leaves_those_of_more_to_the_modules(monkeypatch):
    models = tiny_models.language_model("llama", 1), tiny_models.reward_model("opt", 1)
    monkeypatch.setitem(kernels.FASTER_ROWS, OLDEST, kernels.FASTER_ROWS[9, 0])
    with rows_by_way() as proof:
        decoder = ArgsDecoder(*models)
    assert proof["fused"]
    assert proof["modules"]
    prompts = [tiny_models.tokens(length, seed=length) for length in (18, 1, 7)]
    config = DecodingConfig(k=10, w=1.5, max_new_tokens=2, eos_token_ids=[])
    for texts, fused, modules in ((prompts[:1], {1, 10}, set()), (prompts, {3}, {30})):
        with rows_by_way() as rows:
            results = decoder.generate(texts, config)
        assert (set(rows["fused"]), set(rows["modules"])) == (fused, modules)
        for text, result in zip(texts, results, strict=True):
            expected = oracle.decode(*models, text, k=10, w=1.5, steps=2)
            assert expected.margin > 1e-4
            assert result.token_ids == expected.tokens
            assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)


@pytest.mark.parametrize("joined", [False, True])
def test_many_texts_are_taken_some_at_a_time(monkeypatch, joined):
    monkeypatch.setattr(op, "ROWS", 8 if joined else 4)  # of 2 texts with 2 rows
    from layer_cases import layers_case

    case = layers_case([5, 0, 17, 3, 9], 2, rotary=8, ranks=[3] if joined else None, joined=joined)
    copies = [[x.clone() if isinstance(x, torch.Tensor) else x for x in case] for _ in range(2)]
    for arguments in copies:
        arguments[-1] = [x.clone() for x in case[-1]]
    op.decoder_layers("cpu")(*copies[0])
    from args_fast.ops import plain_layers

    plain_layers.decoder_layers(*copies[1])
    got, wanted = ([x[0], *x[2:4], *x[-1][:2]] for x in copies)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)


# ---- launches ------------------------------------------------------------------------------------


def launches(layers, *, w, k, fused, lookahead=False):
    """The kernels of one step of a pair with as many layers each, OPT in bfloat16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "num_attention_heads": 2, "ffn_dim": 32}
    sizes |= {"vocab_size": 61, "max_position_embeddings": 64, "num_hidden_layers": layers}
    lm = t.AutoModelForCausalLM.from_config(t.OPTConfig(**sizes))
    rm = t.AutoModelForSequenceClassification.from_config(t.OPTConfig(**sizes, num_labels=1))
    models = (m.bfloat16().eval() for m in (lm, rm))
    decoder = ArgsDecoder(*models, fused_layers=fused, lookahead=lookahead)
    with steps_recorded() as steps:
        decode(decoder, [5, 6, 7], k=k, w=w, max_new_tokens=3)
    assert steps[1] == steps[2]  # the first may make what stays as it is
    return steps[1]


@pytest.fixture
def one_launch_ops(monkeypatch):
    """The ops that csrc/cuda has in place of several kernels, each counted as one."""
    for name in cuda.OPS:
        run = count_as_one(name, getattr(plain, name))
        monkeypatch.setitem(backends.TABLE["cpu"][name], "triton", run)


def test_a_layer_is_five_launches_and_a_greedy_step_of_opt_2_7b_is_167():
    one, two = (launches(layers, w=0, k=1, fused=True) for layers in (1, 2))
    assert len(two) - len(one) == 5
    assert len(one) + 5 * (LAYERS["opt-2.7b"] - 1) == 167
    around = ["_begin", "_norm", "linear", "_commit", "_scan", "_choose", "_record"]
    assert [name for name in one if name in around] == around


@pytest.mark.usefixtures("one_launch_ops")
def test_with_the_cuda_ops_it_is_166_and_a_guided_step_ends_with_four():
    greedy = launches(1, w=0, k=1, fused=True)
    assert len(greedy) + 5 * (LAYERS["opt-2.7b"] - 1) == 166
    guided = launches(1, w=1.5, k=3, fused=True)
    small = guided[guided.index("linear") + 1 :]
    small = [name for name in small if name not in ("_begin", *OF_A_LAYER, "_norm")]
    assert small == ["_commit", "topk_logprobs", "select_commit", "_record"]


def test_a_guided_step_of_the_papers_pair():
    one, two = (launches(layers, w=1.5, k=3, fused=True, lookahead=True) for layers in (1, 2))
    assert len(two) - len(one) == 10  # of both models
    for name in ("_project", "_attend", "_feed"):
        assert two.count(name) == 4
    of_layers = 5 * (LAYERS["opt-2.7b"] - 1 + LAYERS["opt-350m"] - 1)
    assert len(one) + of_layers == 294


def test_a_step_of_an_adapter_has_no_launch_more_per_layer():
    """One pass for the language model and the adapter on it."""

    def step(layers):
        lm = tiny_models.language_model("llama", layers)
        options = {"fused_layers": True, "lookahead": True}
        decoder = ArgsDecoder(lm, Adapter(lora.adapted(lm)), **options)
        with steps_recorded() as steps:
            decode(decoder, [5, 6, 7], k=3, w=1.5, max_new_tokens=3)
        assert steps[1] == steps[2]
        return steps[1]

    one, two = step(1), step(2)
    assert len(two) - len(one) == 5
    assert [name for name in one if name in OF_A_LAYER] == [
        *("_project", "_attend", "_add", "_feed", "_add")
    ]


def test_through_the_modules_it_is_several_times_as_many():
    one, two = (launches(layers, w=0, k=1, fused=False) for layers in (1, 2))
    assert len(two) - len(one) >= 14


def test_a_step_ends_with_one_kernel_that_writes_down_what_was_chosen():
    names = launches(1, w=1.5, k=3, fused=True)
    last = len(names) - 1 - names[::-1].index("_norm")
    assert names[last + 1 :] == ["_select", "_commit", "_record"]
    with use_backend("torch"):
        assert "_record" not in launches(1, w=1.5, k=3, fused=False)
