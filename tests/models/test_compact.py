"""Weights that 16 bits hold are kept in 16 bits, and the model is the same in float32."""

import copy

import oracle
import pytest
import torch
from cpp_ops import needs_cpp
from lora import adapted, of_text
from tiny_models import CONFIGS, language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.models.backbone import Backbone
from args_fast.models.compact import CompactLinear, keep_in_16_bits, named_weights, plain
from args_fast.models.proof import prove
from args_fast.rewards import Adapter

pytestmark = needs_cpp
KINDS = [torch.bfloat16, torch.float16]


def published(model, kind=torch.bfloat16):
    """A copy whose weights are those of a checkpoint in 16 bits, loaded in float32."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data = weight.data.to(kind).float()
    return model


def compacted(model, *, head=True):
    model = copy.deepcopy(model)
    keep_in_16_bits(model, head=head)
    return model


def kinds(model):
    """The types of the weights of its linear layers."""
    linears = (torch.nn.Linear, CompactLinear)
    return {layer.weight.dtype for layer in model.modules() if isinstance(layer, linears)}


def outputs(model, ids=None):
    ids = torch.tensor([tokens(9) if ids is None else ids])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_model_keeps_its_numbers_and_its_outputs(name, kind):
    lm = published(language_model(name), kind)
    small = compacted(lm)
    assert kind in kinds(small) or name == "gpt2"  # whose layers are of another kind
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    before = dict(lm.named_parameters(remove_duplicate=False))
    for n, w in named_weights(small):
        assert torch.equal(w.float(), before[n])
    torch.testing.assert_close(outputs(small), outputs(lm), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "opt"])
def test_all_layers_of_the_fused_families_are_kept_and_fused(name, kind):
    lm = compacted(published(language_model(name), kind))
    assert kinds(lm) == {kind}
    backbone = Backbone(lm, "language model")
    assert backbone.fused_layers() is not None
    prove(backbone, logits=True)
    assert backbone.fused_layers() is not None  # else they disagreed


@pytest.mark.parametrize("fused_layers", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("lm", "rm"), [("llama", "opt"), ("qwen3", "llama"), ("gemma2", "gpt2")])
def test_a_loaded_pair_gives_the_oracles_tokens(tmp_path, lm, rm, kind, fused_layers):
    models = {"lm": published(language_model(lm), kind), "rm": published(reward_model(rm), kind)}
    for role, model in models.items():
        copy.deepcopy(model).to(kind).save_pretrained(tmp_path / role)
    decoder = ArgsDecoder.from_pretrained(
        tmp_path / "lm", tmp_path / "rm", device="cpu", fused_layers=fused_layers
    )
    assert kinds(decoder.language_model) == {kind}
    assert rm == "gpt2" or kind in kinds(decoder.reward_model.base_model)
    config = DecodingConfig(k=5, w=1.5, max_new_tokens=6, eos_token_ids=[])
    for length in (9, 40):
        wanted = oracle.decode(*models.values(), tokens(length), k=5, w=1.5, steps=6)
        (result,) = decoder.generate(tokens(length), config)
        assert result.token_ids == wanted.tokens
        assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)


def test_a_reward_model_keeps_its_head():
    rm = compacted(published(reward_model()), head=False)
    assert kinds(rm.model) == {torch.bfloat16}
    assert rm.score.weight.dtype == torch.float32


# ---- which are left as they are ------------------------------------------------------------------


def left_alone(model):
    before = {name: id(module) for name, module in model.named_modules()}
    addresses = [p.data_ptr() for p in model.parameters()]
    keep_in_16_bits(model, head=True)
    same = {name: id(module) for name, module in model.named_modules()} == before
    return same and [p.data_ptr() for p in model.parameters()] == addresses


@pytest.mark.parametrize("bits", [0x1, 0x1000])  # the last one, and the first that both lack
def test_one_weight_of_more_bits_leaves_all_as_they_are(bits):
    lm = published(language_model())
    weight = lm.model.layers[1].mlp.down_proj.weight.data
    weight.view(torch.int32)[3, 5] |= bits
    assert left_alone(lm)


def test_a_weight_beyond_float16_leaves_all_as_they_are():
    lm = published(language_model(), torch.float16)
    lm.model.layers[0].mlp.down_proj.weight.data[2, 2] = 1e5
    assert left_alone(lm)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_models_in_16_bits_are_left_as_they_are(kind):
    assert left_alone(published(language_model()).to(kind))


def test_products_that_are_left_to_torch_have_torchs_weights(monkeypatch):
    monkeypatch.setenv("ARGS_FAST_LINEAR", "torch")
    assert left_alone(published(language_model()))


def test_layers_that_no_text_goes_through_are_left_as_they_are():
    lm = published(language_model())
    lm.vision = torch.nn.Linear(4, 4).bfloat16().float()
    keep_in_16_bits(lm, head=True)
    assert kinds(lm.model) == {torch.bfloat16}
    assert type(lm.vision) is torch.nn.Linear


class ReadsWeight(torch.nn.Module):
    """Calls a layer, and looks at its weight, as some models do."""

    def __init__(self, layer, read):
        super().__init__()
        self.layer, self.read = layer, read

    def forward(self, x):
        return self.layer(self.read(x, self.layer.weight))


READERS = {
    "rounds to its type": lambda x, weight: x.to(weight.dtype).to(x.dtype),
    "gives rows of its type": lambda x, weight: x.to(weight.dtype),
    "multiplies with it": lambda x, weight: x + 0 * (x @ weight.T @ weight),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("reads", READERS)
def test_a_model_that_does_more_than_call_a_layer_gets_its_layers_back(reads, kind):
    lm = published(language_model(), kind)
    attention = lm.model.layers[0].self_attn
    attention.q_proj = ReadsWeight(attention.q_proj, READERS[reads])
    lm.config.tie_word_embeddings = True
    lm.tie_weights()
    before = outputs(lm)
    keep_in_16_bits(lm, head=True)
    assert kinds(lm) == {torch.float32}
    assert torch.equal(outputs(lm), before)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


# ---- what callers do with them between decodes ---------------------------------------------------


def decode(decoder):
    config = DecodingConfig(k=5, w=1.5, max_new_tokens=6, eos_token_ids=[])
    (result,) = decoder.generate(tokens(9), config)
    return result


@pytest.mark.parametrize("change", ["a state", "a parameter", "a weight in place"])
def test_new_weights_are_the_ones_that_are_used(change):
    lm, rm, other = published(language_model()), reward_model("opt"), language_model(seed=5)
    decoder = ArgsDecoder(compacted(lm), rm)
    decode(decoder)
    if change == "a state":
        lm.load_state_dict(other.state_dict())
        decoder.language_model.load_state_dict(other.state_dict())
    else:
        weight = published(other).model.layers[1].mlp.down_proj.weight.detach()
        lm.model.layers[1].mlp.down_proj.weight.data = weight.clone()
        layer = decoder.language_model.model.layers[1].mlp.down_proj
        if change == "a parameter":
            layer.weight = torch.nn.Parameter(weight.clone())
        else:
            layer.weight.copy_(weight)
    result = decode(decoder)
    wanted = oracle.decode(lm, rm, tokens(9), k=5, w=1.5, steps=6)
    assert result.token_ids == wanted.tokens
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)
    assert result.logprobs == pytest.approx(decode(ArgsDecoder(lm, rm)).logprobs, abs=1e-4)


# ---- what others do with them --------------------------------------------------------------------


def test_a_plain_layer_of_a_compact_one():
    layer = torch.nn.Linear(5, 3).bfloat16().float()
    compact = CompactLinear(layer.weight.detach().bfloat16(), layer.bias)
    again = plain(compact)
    assert torch.equal(again.weight, layer.weight)
    assert again.bias is layer.bias
    x = torch.randn(4, 5)
    torch.testing.assert_close(compact(x), layer(x))
    torch.testing.assert_close(again(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_model_may_be_used_in_another_type(dtype):
    lm = published(language_model())
    wanted, got = outputs(lm.to(dtype)), outputs(compacted(lm.float()).to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, atol=3e-2, rtol=3e-2)


def test_gradients_are_those_of_the_model():
    ids, grads = torch.tensor([tokens(9)]), []
    for lm in (published(language_model()), compacted(published(language_model()))):
        lm(input_ids=ids, labels=ids).loss.backward()
        grads.append(lm.model.norm.weight.grad)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("M", [1, 64, 65, 257])
@pytest.mark.parametrize("kind", [*KINDS, torch.int8], ids=str)
def test_any_number_of_rows(kind, M):
    x, weight, bias = torch.randn(M, 33), torch.randn(7, 33), torch.nn.Parameter(torch.randn(7))
    weight = (weight * 9).to(kind)
    scale = torch.rand(7) if kind == torch.int8 else None
    layer = CompactLinear(weight, bias, scale)
    wanted = torch.nn.functional.linear(x, layer.dequantized(), bias)
    torch.testing.assert_close(layer(x), wanted, atol=1e-3, rtol=1e-5)


def test_an_adapter_stands_on_compact_weights_and_is_merged_into_floats():
    lm = published(language_model())
    small, model = compacted(lm), adapted(lm)
    reward = Adapter(copy.deepcopy(model))
    pair = ArgsDecoder(small, reward)
    assert reward.shares_weights
    wanted = oracle.decode(lm, of_text(model), tokens(9), k=5, w=1.5, steps=6)
    config = DecodingConfig(k=5, w=1.5, max_new_tokens=6, eos_token_ids=[])
    (result,) = pair.generate(tokens(9), config)
    assert result.token_ids == wanted.tokens
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)
    merged = pair.reward_model
    assert torch.equal(
        small.model.layers[0].mlp.up_proj.weight.float(), lm.model.layers[0].mlp.up_proj.weight
    )
    second = ArgsDecoder(compacted(lm), reward)
    assert reward.shares_weights
    assert second.generate(tokens(9), config)[0].token_ids == wanted.tokens
    own = oracle.reward(merged, tokens(12))
    assert own == pytest.approx(oracle.reward(of_text(model), tokens(12)), abs=1e-4)
