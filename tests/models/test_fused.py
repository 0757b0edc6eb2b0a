"""Layers as one op: which models have them, and that they do what the modules do."""

import contextlib
import copy
import dataclasses
import functools
import math
import warnings

import oracle
import pytest
import torch
import transformers as t
from refusals import refuses
from tiny_models import CONFIGS, IDS, LENGTH, VOCABULARY, language_model, reward_model, tokens
from ways import fused_up_to, rows_by_way

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, ProofError
from args_fast.kvcache.storage import PagedCache
from args_fast.models import fused, fused_prefill
from args_fast.models.backbone import Backbone, check_eval
from args_fast.models.branches import Branches
from args_fast.models.compact import CompactLinear, quantize_linears
from args_fast.models.families import layers_of
from args_fast.models.probe import probe
from args_fast.models.proof import prove
from args_fast.ops import cpp, triton, use_backend
from args_fast.ops import decoder_layers as op

pytestmark = pytest.mark.skipif(cpp.status() != "built", reason=f"C++ ops: {cpp.status()}")

KNOWN = {"llama", "llama_mqa", "mistral", "qwen2", "qwen3", "opt", "gpt2"}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | IDS
LLAMA = SMALL | {
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,
}
OPT = SMALL | {"ffn_dim": 48, "max_position_embeddings": LENGTH, "init_std": 0.3}
GPT2 = IDS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": LENGTH}
ROPE = {"rope_theta": 1e4, "factor": 4.0}
LLAMA3 = ROPE | {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# What the tiny models do not have.
VARIANTS = {
    "llama with biases": lambda: t.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "llama with llama3 positions": lambda: t.LlamaConfig(**LLAMA, rope_parameters=LLAMA3),
    "llama with linear positions": lambda: t.LlamaConfig(
        **LLAMA, rope_parameters=ROPE | {"rope_type": "linear"}
    ),
    "llama with wide heads": lambda: t.LlamaConfig(**LLAMA, head_dim=24),
    "llama with gelu": lambda: t.LlamaConfig(**LLAMA, hidden_act="gelu"),
    "llama with one embedding": lambda: t.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "qwen2 with a window in one layer": lambda: t.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "opt with norms after": lambda: t.OPTConfig(
        **OPT, do_layer_norm_before=False, word_embed_proj_dim=16
    ),
    "opt without biases": lambda: t.OPTConfig(
        **OPT, enable_bias=False, layer_norm_elementwise_affine=False
    ),
    "opt without a last norm": lambda: t.OPTConfig(**OPT, _remove_final_layer_norm=True),
    "opt with gelu": lambda: t.OPTConfig(**OPT, activation_function="gelu"),
    "gpt2 scaled by layer": lambda: t.GPT2Config(
        **GPT2, scale_attn_by_inverse_layer_idx=True, n_inner=40, initializer_range=0.3
    ),
}


@functools.cache
def model(name, kind="lm"):
    if name in CONFIGS:
        return language_model(name) if kind == "lm" else reward_model(name)
    torch.manual_seed(3)
    config = VARIANTS[name]()
    config.num_labels = 1
    auto = t.AutoModelForCausalLM if kind == "lm" else t.AutoModelForSequenceClassification
    return auto.from_config(config).eval()


def found(lm):
    """What takes the model apart says."""
    return layers_of(lm, probe(lm, "language model").options)


def is_known(lm):
    return not isinstance(found(lm), str)


def branches(backbone, lengths, N, mask=None, seed=0, stored=torch.float32):
    """A tail over prefixes with random keys and values, which are of type ``stored``."""
    at, B = backbone.layout, len(lengths)
    generator = torch.Generator().manual_seed(seed)
    P = max(1, -(-max(lengths) // 16))
    cache = PagedCache(at, B * P)
    for pages in (cache.k_pages, cache.v_pages):
        pages.copy_((torch.randn(pages.shape, generator=generator) / 2).to(stored))
    table = torch.arange(1, 1 + B * P, dtype=torch.int32).view(B, P)
    rows = (at.layers, B, N, at.kv_heads, at.head_size)
    k, v = (torch.zeros(rows, dtype=at.dtype) for _ in range(2))
    return Branches(cache, table, torch.tensor(lengths, dtype=torch.int32), k, v, mask)


def ids(*shape, seed=0):
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def run(backbone, method="hidden", lengths=(9, 0, 33), N=5, mask=None, **more):
    """(result, keys, values) of the rows of a tail."""
    tail = branches(backbone, list(lengths), N, mask, **more)
    out = getattr(backbone, method)(ids(len(lengths), N), tail.positions(), tail)
    return out, tail.k, tail.v


def assert_as_modules(name, kind, method, mask=None):
    op = Backbone(model(name, kind), "model")
    modules = Backbone(model(name, kind), "model", fused=False)
    assert op.fused_layers() is not None
    assert modules.fused_layers() is None
    for got, wanted in zip(
        run(op, method, mask=mask), run(modules, method, mask=mask), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)


# ---- as the modules ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(KNOWN), *VARIANTS])
@pytest.mark.parametrize("method", ["hidden", "logits"])
def test_a_language_model_gives_what_its_modules_give(name, method):
    assert_as_modules(name, "lm", method)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_reward_model_gives_what_its_modules_give(name):
    assert_as_modules(name, "rm", "hidden")


@pytest.mark.parametrize("name", ["mistral", "opt"])
def test_a_chain_gives_what_the_modules_give(name):
    assert_as_modules(name, "lm", "hidden", torch.ones(5, 5, dtype=torch.bool).tril())


def test_hidden_states_and_logits_come_in_one_pass():
    op = Backbone(model("llama"), "model")
    tail = branches(op, [9], 2)
    with torch.inference_mode():
        hidden, logits = op.hidden_and_logits(ids(1, 2), tail.positions(), tail)
    assert torch.equal(hidden, run(op, "hidden", (9,), 2)[0])
    assert torch.equal(logits, run(op, "logits", (9,), 2)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_in_16_bits_it_errs_no_more_than_the_modules(name, dtype):
    errors = {}
    exact = Backbone(copy.deepcopy(model(name)).to(dtype), "model")
    exact.model.double()  # which the probe refuses
    exact.layout = dataclasses.replace(exact.layout, dtype=torch.float64)
    assert exact.fused_layers() is None  # float64
    for whole in (True, False):
        backbone = Backbone(copy.deepcopy(model(name)).to(dtype), "model", fused=whole)
        assert (backbone.fused_layers() is not None) == whole
        total = 0.0
        for seed in range(4):
            case = {"lengths": (16, 3), "N": 10, "seed": seed, "stored": dtype}
            with use_backend("torch"):
                wanted = run(exact, "logits", **case)[0]
            got = run(backbone, "logits", **case)[0].double()
            total += ((got - wanted).norm() / wanted.norm()).item()
        errors[whole] = total
    assert errors[True] <= errors[False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "opt", "opt with norms after", "gpt2"])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(name, dtype):
    backbone = Backbone(copy.deepcopy(model(name)).to(dtype), "model")
    tail = branches(backbone, [9, 0, 33, 16], 20)  # 80 rows
    tokens = ids(4, 20)
    with torch.inference_mode():
        whole = backbone.hidden(tokens, tail.positions(), tail)
        for b in range(4):
            for first, last in [(0, 20), (7, 8), (15, 20)]:
                part = Branches(
                    tail.cache,
                    tail.page_table[b : b + 1],
                    tail.lengths[b : b + 1],
                    *(x[:, b : b + 1, first:last].clone() for x in (tail.k, tail.v)),
                )
                out = backbone.hidden(tokens[b : b + 1, first:last], part.positions(), part)
                assert torch.equal(out, whole[b : b + 1, first:last])
                assert torch.equal(part.k, tail.k[:, b : b + 1, first:last])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "lm"), ("qwen3", "rm"), ("opt", "rm"), ("opt with norms after", "lm")],
)
def test_weights_of_8_bits_give_what_their_modules_give(name, kind):
    quantized = copy.deepcopy(model(name, kind))
    quantize_linears(quantized.base_model)
    assert any(type(module) is CompactLinear for module in quantized.modules())
    results = []
    for whole in (True, False):
        backbone = Backbone(quantized, "model", fused=whole)
        assert (backbone.fused_layers() is not None) == whole
        results.append(run(backbone))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", [*sorted(KNOWN), "opt with norms after"])
@pytest.mark.parametrize("pieces", [(9,), (17, 60), (16, 1, 53), (70,)])
def test_a_prompt_is_stored_as_the_modules_store_it(name, pieces):
    text, pages = ids(sum(pieces)).tolist(), [3, 1, 5, 2, 4]
    caches = []
    for whole in (True, False):
        backbone = Backbone(model(name), "model", fused=whole)
        cache, start = PagedCache(backbone.layout, 5), 0
        for pages_of in (cache.k_pages, cache.v_pages):
            pages_of.fill_(torch.nan)
        for piece in pieces:
            with torch.inference_mode():
                backbone.prefill(cache, text[start : start + piece], pages, start)
            start += piece
        caches.append(cache)
    for got, wanted in zip(*((c.k_pages, c.v_pages) for c in caches), strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5, equal_nan=True)


def test_weights_quantized_after_the_model_was_probed_are_the_ones_that_are_used():
    rm = copy.deepcopy(model("opt", "rm"))
    backbone = Backbone(rm, "reward model")
    quantize_linears(rm.base_model)
    prove(backbone, logits=False)
    assert backbone.fused_layers() is not None


def takes(lm, rows):
    return fused_prefill.takes(Backbone(lm, "model").fused_layers(), rows)


def test_prompts_of_wide_models_in_bfloat16_are_left_to_the_modules(monkeypatch):
    monkeypatch.setattr(fused_prefill.cpp, "kernels", lambda: "avx512bf16")
    width = model("llama").config.hidden_size
    for widest in (width, width - 1):
        monkeypatch.setattr(fused_prefill, "WIDEST_BFLOAT16", widest)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            lm = copy.deepcopy(model("llama")).to(dtype)
            reads = dtype != torch.bfloat16 or widest == width
            assert takes(lm, 2048) == reads
            quantize_linears(lm)
            assert takes(lm, 2048)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prompts_of_many_rows_are_left_to_the_modules_where_torch_has_tiles(monkeypatch, dtype):
    monkeypatch.setattr(fused_prefill.cpp, "kernels", lambda: "amx")
    lm = copy.deepcopy(model("llama")).to(dtype)
    many = math.ceil(fused_prefill.MANY_IN_TILES[dtype] / lm.config.hidden_size**2)
    assert takes(lm, many - 1)
    assert not takes(lm, many)
    quantize_linears(lm)
    assert takes(lm, many)


# ---- which models --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_models_that_are_known(name):
    assert is_known(language_model(name)) == (name in KNOWN)


def replaced(path, change):
    def changed(lm):
        parent, _, child = path.rpartition(".")
        module = lm.get_submodule(parent)
        setattr(module, child, change(getattr(module, child)))

    return changed


class Wider(torch.nn.Linear):
    pass


def subclass(module):
    module.__class__ = type("Mine", (type(module),), {})
    return module


def patched(module):
    module.forward = type(module).forward.__get__(module)
    return module


def sequential(module):
    return torch.nn.Sequential(module)


def quantized(module):
    class Packed(torch.Tensor):
        pass

    module.weight = torch.nn.Parameter(module.weight.detach().as_subclass(Packed))
    return module


def other_epsilon(module):
    module.variance_epsilon = 0.1
    return module


STRANGE = {
    "a model of a subclass": replaced("model", subclass),
    "a layer of a subclass": replaced("model.layers.1", subclass),
    "a norm of a subclass": replaced("model.norm", subclass),
    "a projection of a subclass": replaced("model.layers.0.self_attn.k_proj", subclass),
    "a projection that is wrapped": replaced("model.layers.0.mlp.up_proj", sequential),
    "an activation of its own": replaced("model.layers.0.mlp.act_fn", lambda _: torch.nn.Mish()),
    "two activations": replaced("model.layers.0.mlp.act_fn", lambda _: torch.nn.ReLU()),
    "two epsilons": replaced("model.layers.0.input_layernorm", other_epsilon),
    "a forward that is not its class's": replaced("model.layers.0.mlp", patched),
    "a quantized weight": replaced("model.layers.0.mlp.down_proj", quantized),
    "a weight of another type": replaced("model.layers.0.mlp.down_proj", lambda m: m.half()),
    "float64": lambda lm: lm.double(),
    "one weight of 8 bits": lambda lm: quantize_linears(lm.model.layers[1]),
    "another part": lambda lm: lm.model.layers[0].add_module("adapter", torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("why", STRANGE)
def test_a_model_that_is_not_exactly_what_is_expected_is_not_known(why):
    lm = copy.deepcopy(language_model("llama"))
    options = probe(lm, "language model").options
    assert not isinstance(layers_of(lm, options), str)
    STRANGE[why](lm)
    assert isinstance(layers_of(lm, options), str)


# ---- when it applies -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "model", "model.layers.1", "model.layers.0.mlp.up_proj"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_called(path, kind):
    lm = copy.deepcopy(language_model("llama"))
    backbone = Backbone(lm, "language model")
    calls = []
    hook = getattr(lm.get_submodule(path), kind)(lambda module, *args: calls.append(module))
    run(backbone, "logits")
    assert len(calls) == 1
    hook.remove()
    assert backbone.fused_layers() is not None


def test_hooks_that_transformers_leaves_are_not_waited_for():
    """Asked for its hidden states once, a model keeps hooks that do nothing afterwards."""
    lm = copy.deepcopy(language_model("llama"))
    backbone = Backbone(lm, "language model")
    lm(ids(1, 3), output_hidden_states=True)
    assert any(module._forward_hooks for module in lm.modules())
    assert backbone.fused_layers() is not None


def test_a_hook_on_an_embedding_is_called_and_the_op_still_runs():
    lm = copy.deepcopy(language_model("opt"))
    backbone = Backbone(lm, "language model")
    calls = []
    lm.get_input_embeddings().register_forward_hook(lambda module, *args: calls.append(module))
    assert backbone.fused_layers() is not None
    run(backbone)
    assert len(calls) == 1


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_another_backend_leaves_it_to_the_modules(backend):
    with use_backend(backend):
        assert Backbone(language_model(), "language model").fused_layers() is None


def pair(**options):
    return ArgsDecoder(copy.deepcopy(language_model()), copy.deepcopy(reward_model()), **options)


@pytest.mark.parametrize("asked", [True, "auto", False])
def test_option_of_the_engine(asked):
    decoder = pair(fused_layers=asked)
    reward = decoder.engine.panel.rewards["reward"]
    assert (decoder.engine.lm.fused_layers() is not None) == bool(asked)
    assert (reward.backbone.fused_layers() is not None) == bool(asked)
    ArgsDecoder(copy.deepcopy(language_model()), reward)
    assert reward.backbone.fused_layers() is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_request_has_the_same_bits_alone_and_in_a_batch(name, dtype):
    lm, rm = (copy.deepcopy(make(name)).to(dtype) for make in (language_model, reward_model))
    decoder = ArgsDecoder(lm, rm)
    prompts = [ids(length, seed=length).tolist() for length in (17, 1, 30, 5)]
    config = DecodingConfig(k=5, w=1.5, max_new_tokens=6, eos_token_ids=[])
    together = decoder.generate(prompts, config)
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = decoder.generate(prompt, config)
        assert alone == result  # tokens, and the last bit of every number


def test_option_that_is_not_true_or_false_is_refused():
    with refuses(ConfigError, "fused_layers is 1; it must be True, False or 'auto'"):
        pair(fused_layers=1)


def test_layers_that_disagree_with_the_model_are_not_used(monkeypatch):
    right = fused.decoder_layers("cpu")

    def wrong(hidden, *others):
        right(hidden, *others)
        hidden[..., 0] += 1

    with monkeypatch.context() as patched:
        patched.setattr(fused, "decoder_layers", lambda device: wrong)
        with pytest.warns(UserWarning, match="fused_layers is not used for the language model"):
            decoder = pair()
    assert decoder.engine.lm.fused_layers() is None
    assert decoder.engine.panel.rewards["reward"].backbone.fused_layers() is None
    config = DecodingConfig(k=5, max_new_tokens=6)
    wanted = pair(fused_layers=False).generate([[5, 6, 7]], config)
    assert decoder.generate([[5, 6, 7]], config) == wanted


def test_compiled_models_run_through_their_modules():
    backbone = Backbone(language_model(), "language model")
    backbone.compile("default")
    assert backbone.fused_layers() is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("change", ["in place", "moved"])
def test_weights_that_change_are_the_ones_that_are_used(name, change):
    lm = copy.deepcopy(language_model(name))
    backbone = Backbone(lm, "language model")
    before = run(backbone)[0]
    for parameter in lm.parameters():
        if change == "moved":
            parameter.data = parameter.data * 1.25
        else:
            parameter.data.mul_(1.25)
    after = run(backbone)[0]
    assert not torch.allclose(before, after)
    wanted = run(Backbone(lm, "language model", fused=False))[0]
    torch.testing.assert_close(after, wanted, atol=1e-4, rtol=1e-4)


def test_what_is_asked_for_and_refused_is_said_by_name():
    lm, rm = copy.deepcopy(language_model("gemma2")), copy.deepcopy(reward_model("gemma2"))
    with pytest.warns(
        UserWarning, match="the language model .* through its modules: its attention"
    ):
        ArgsDecoder(lm, rm, fused_layers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ArgsDecoder(lm, rm)


# ---- some passes by the op and some by modules ---------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "rows"), [((8, 0), 0), ((8, 9), 0), ((9, 0), 16), ((10, 0), 0)]
)
def test_auto_on_cuda_is_the_rows_that_were_measured_on_the_architecture(
    monkeypatch, capability, rows
):
    kernels = pytest.importorskip("args_fast.kernels.decoder_layers")
    monkeypatch.setattr(kernels, "machine", lambda device: (capability, 132))
    monkeypatch.setattr(triton, "status", lambda: "built")
    cuda = torch.device("cuda")
    assert op.backend("cuda") == "triton"
    assert op.faster_rows(cuda) == rows
    for other in ("torch", "cuda", "cpp"):
        with use_backend(other):
            assert op.backend("cuda") is None
            assert op.faster_rows(cuda) == 0
    backbone = Backbone(language_model(), "language model")
    for asked, expected in (("auto", rows), (True, math.inf), (False, 0)):
        backbone.device, backbone.fused = cuda, asked
        assert backbone.most_fused_rows == expected


def test_auto_on_the_cpu_is_any_number_of_rows():
    backbone = Backbone(language_model(), "language model")
    assert backbone.fused_layers(10_000) is not None
    assert op.faster_rows(torch.device("cpu")) == math.inf


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize(("lm", "rm"), [("llama", "opt"), ("gpt2", "qwen3")])
def test_passes_of_more_rows_go_through_modules_with_the_oracles_tokens(lm, rm, lookahead):
    models = language_model(lm), reward_model(rm)
    prompts = [tokens(length, seed=length) for length in (9, 5, 14)]
    config = DecodingConfig(k=10, w=1.5, max_new_tokens=5, eos_token_ids=[])
    with fused_up_to(16):
        decoder = ArgsDecoder(*models, lookahead=lookahead)
        with rows_by_way() as alone:
            (single,) = decoder.generate(prompts[0], config)
        with rows_by_way() as batched:
            batch = decoder.generate(prompts, config)
    assert 10 in alone["fused"]
    assert not alone["modules"]
    assert max(batched["fused"]) <= 16
    assert set(batched["modules"]) == {30}
    for prompt, result in zip([prompts[0], *prompts], [single, *batch], strict=True):
        expected = oracle.decode(*models, prompt, k=10, w=1.5, steps=5)
        assert expected.margin > 1e-4
        assert result.token_ids == expected.tokens
        assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "limit", "ways"),
    [
        ("auto", 16, {"fused", "modules"}),
        ("auto", None, {"fused"}),
        (True, 16, {"fused"}),
        (False, 16, {"modules"}),
    ],
)
def test_each_way_that_is_used_is_proved_at_load_and_no_other(asked, limit, ways):
    limited = contextlib.nullcontext() if limit is None else fused_up_to(limit)
    with limited, rows_by_way() as rows:
        pair(fused_layers=asked)
    assert {way for way, counts in rows.items() if counts} == ways


def test_modules_that_disagree_are_found_where_passes_use_them(monkeypatch):
    attend = Branches.attend
    monkeypatch.setattr(Branches, "attend", lambda *args: attend(*args) * 1.5)
    pair()  # the op alone
    with fused_up_to(16):
        with refuses(ProofError, "the language model", "branch from a shared prefix"):
            prove(Backbone(language_model(), "language model"), logits=True)
        with refuses(ProofError, "the reward model", "branch from a shared prefix"):
            pair()


def test_layers_that_disagree_leave_every_pass_to_the_modules(monkeypatch):
    hidden = fused.FusedLayers.hidden
    with monkeypatch.context() as patched, fused_up_to(16):
        patched.setattr(fused.FusedLayers, "hidden", lambda *args: hidden(*args) * 1.5)
        with pytest.warns(UserWarning, match="fused_layers is not used for the language model"):
            decoder = pair()
    config = DecodingConfig(k=5, max_new_tokens=6)
    with fused_up_to(16), rows_by_way() as rows:
        result = decoder.generate([[5, 6, 7]], config)
    assert not rows["fused"]
    assert rows["modules"]
    assert result == pair(fused_layers=False).generate([[5, 6, 7]], config)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("change", ["another parameter", "another memory"])
def test_a_weight_that_is_replaced_between_decodes_is_used(family, change):
    lm = copy.deepcopy(language_model(family))
    decoder = ArgsDecoder(lm, reward_model("opt"), fused_layers=True)
    config = DecodingConfig(k=3, w=1.0, max_new_tokens=4, eos_token_ids=[])
    decoder.generate(tokens(9), config)
    for module in list(lm.base_model.modules()):
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or isinstance(module, torch.nn.Embedding):
            continue
        if change == "another parameter":
            module.weight = torch.nn.Parameter(weight.detach() * 0.7)
        else:
            weight.data = weight.data * 0.7
    (result,) = decoder.generate(tokens(9), config)
    (fresh,) = ArgsDecoder(lm, reward_model("opt"), fused_layers=True).generate(tokens(9), config)
    assert (result.token_ids, result.logprobs) == (fresh.token_ids, fresh.logprobs)


def test_a_request_looks_once_for_changes_of_its_models():
    lm = copy.deepcopy(language_model("llama"))
    decoder = ArgsDecoder(lm, reward_model("opt"), fused_layers=True)
    config = DecodingConfig(k=3, w=1.0, max_new_tokens=6, eos_token_ids=[])
    (before,) = decoder.generate(tokens(9), config)
    backbone = decoder.engine.lm
    assert backbone.fused_layers()._unchanged
    check_eval(backbone)  # as every request does
    assert not backbone._layers._unchanged
    calls = []
    hook = lm.base_model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    (hooked,) = decoder.generate(tokens(9), config)
    heard = len(calls)
    hook.remove()
    (after,) = decoder.generate(tokens(9), config)
    assert len(calls) == heard > 0
    assert before.token_ids == hooked.token_ids == after.token_ids
