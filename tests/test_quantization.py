"""Quantized weights: what is refused, and that a quantized pair decodes as its own weights say."""

import copy
from importlib.util import find_spec
from types import SimpleNamespace

import oracle
import pytest
import torch
from tiny_models import language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig, quantization
from args_fast.errors import ConfigError
from args_fast.models.compact import CompactLinear, quantized
from args_fast.ops import cpp

needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not installed (pip install args-fast[quant])"
)
needs_cpp_or_torchao = pytest.mark.skipif(
    cpp.status() != "built" and find_spec("torchao") is None, reason="neither is there"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def torchao(monkeypatch):
    """Makes torchao look installed, or not."""

    def installed(yes):
        found = SimpleNamespace() if yes else None
        monkeypatch.setattr(quantization, "find_spec", lambda name: found)

    return installed


def test_none_needs_nothing(torchao):
    torchao(False)
    quantization.check(None, "lm_quantization", CPU)
    model = language_model()
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    quantization.quantize(model, None)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == before


@pytest.mark.parametrize("name", ["lm_quantization", "rm_quantization"])
def test_what_cannot_be_had_is_refused_before_anything_is_loaded(torchao, name):
    torchao(True)
    with pytest.raises(ConfigError, match=f"{name} is 'int4'; it must be int8 or fp8, or None"):
        ArgsDecoder.from_pretrained("nowhere", "nowhere", device="cpu", **{name: "int4"})
    torchao(False)
    with pytest.raises(ConfigError, match=rf"{name} is 'fp8'.*args-fast\[quant\]"):
        ArgsDecoder.from_pretrained("nowhere", "nowhere", device="cpu", **{name: "fp8"})


def test_int8_on_the_cpu_needs_torchao_only_without_the_cpp_ops(torchao, monkeypatch):
    torchao(False)
    monkeypatch.setattr(quantization.cpp, "status", lambda: "built")
    quantization.check("int8", "lm_quantization", CPU)
    with pytest.raises(ConfigError, match=r"args-fast\[quant\]"):
        quantization.check("int8", "lm_quantization", CUDA)
    monkeypatch.setattr(quantization.cpp, "status", lambda: "not built")
    with pytest.raises(ConfigError, match=r"args-fast\[quant\]"):
        quantization.check("int8", "lm_quantization", CPU)


def test_fp8_is_refused_on_a_gpu_without_it(torchao, monkeypatch):
    torchao(True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"A100 has compute capability 8\.0.*Use 'int8'"):
        quantization.check("fp8", "rm_quantization", CUDA)
    quantization.check("int8", "rm_quantization", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    quantization.check("fp8", "rm_quantization", CUDA)


def test_the_bytes_of_tied_weights_count_once():
    tied = torch.nn.ModuleList([torch.nn.Linear(8, 4, bias=False), torch.nn.Embedding(4, 8)])
    tied[1].weight = tied[0].weight
    assert quantization.weight_bytes(tied) == 4 * 8 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantized_weight_errs_by_half_a_step_at_most(dtype):
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3], weight[4, 5] = 0.0, 100.0
    integers, scale = quantized(weight)
    assert integers.dtype == torch.int8
    assert (integers.abs().amax(dim=1) == torch.tensor([127, 127, 127, 0, 127, 127, 127])).all()
    error = (integers.float() * scale[:, None] - weight.float()).abs()
    assert (error <= scale[:, None] * 0.5001).all()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    language_model().save_pretrained(folder / "lm")
    reward_model("opt").save_pretrained(folder / "rm")
    return folder


def dequantized(module):
    """A copy of a quantized model with plain weights of the same values."""
    plain = copy.deepcopy(module)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is CompactLinear:
                linear = torch.nn.Linear(child.in_features, child.out_features)
                linear.weight = torch.nn.Parameter(child.dequantized())
                linear.bias = child.bias
                setattr(parent, name, linear)
    for layer in plain.modules():
        if isinstance(layer, torch.nn.Linear) and type(layer.weight) is not torch.nn.Parameter:
            layer.weight = torch.nn.Parameter(layer.weight.dequantize())
    return plain


@pytest.mark.parametrize(
    "kind",
    [pytest.param("int8", marks=needs_cpp_or_torchao), pytest.param("fp8", marks=needs_torchao)],
)
@pytest.mark.parametrize("which", ["lm", "rm", "both"])
def test_a_quantized_pair_decodes_as_its_weights_say(saved, kind, which):
    options = {f"{role}_quantization": kind for role in ("lm", "rm") if which in (role, "both")}
    decoder = ArgsDecoder.from_pretrained(saved / "lm", saved / "rm", device="cpu", **options)
    pair = {"lm": decoder.language_model, "rm": decoder.reward_model}
    for role, original in (("lm", language_model()), ("rm", reward_model("opt"))):
        changed = quantization.weight_bytes(pair[role]) < quantization.weight_bytes(original)
        assert changed == (which in (role, "both"))
    assert type(decoder.reward_model.score.weight) is torch.nn.Parameter

    plain = {role: dequantized(model) for role, model in pair.items()}
    expected = oracle.decode(plain["lm"], plain["rm"], tokens(9), k=5, w=1.5, steps=6)
    assert expected.margin > 1e-4
    config = DecodingConfig(k=5, w=1.5, max_new_tokens=6, eos_token_ids=[])
    (result,) = decoder.generate(tokens(9), config)
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-3)
