"""Whole decodes, and torch.compile, with every linear layer that the Triton kernel can make."""

import oracle
import pytest
import tiny_models
import torch
from torch.nn import functional as F

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.models.linear import ARRIVALS, Entry, FewRows, chosen_by, few_rows
from args_fast.ops.linear import linear

CPU = torch.device("cpu")


@pytest.fixture
def products(monkeypatch):
    """The (rows, N, K) of the products that the kernel made."""
    made = []
    from args_fast.kernels import linear as module

    kernel = module.linear

    def recorded(x, weight, bias, arrivals):
        made.append((x.numel() // x.shape[-1], *weight.shape))
        return kernel(x, weight, bias, arrivals)

    monkeypatch.setattr(module, "linear", recorded)
    return made


@pytest.mark.parametrize(("lm", "rm"), [("llama", "opt"), ("opt", "qwen2")])
def test_the_tokens_are_the_oracles(lm, rm, products, monkeypatch):
    # Each model enters a context of its own, which it chooses when the decoder is made.
    monkeypatch.setenv("ARGS_FAST_LINEAR", "triton")
    decoder = ArgsDecoder(tiny_models.language_model(lm), tiny_models.reward_model(rm))
    config = DecodingConfig(k=5, w=1.5, max_new_tokens=2, eos_token_ids=[])
    prompt = tiny_models.tokens(9)
    expected = oracle.decode(
        tiny_models.language_model(lm), tiny_models.reward_model(rm), prompt, k=5, w=1.5, steps=2
    )
    assert expected.margin > 1e-4
    (result,) = decoder.generate(prompt, config)
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
    assert {rows for rows, _, _ in products} >= {1, 5}  # the language model's, the reward model's


def test_the_environment_asks_for_it(monkeypatch, products):
    monkeypatch.setenv("ARGS_FAST_LINEAR", "triton")
    context = few_rows(CPU)
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
    expected = F.linear(x, weight, bias)
    for _ in range(2):  # it can be entered again
        with context:
            torch.testing.assert_close(F.linear(x, weight, bias=bias), expected)
    assert products == [(6, 5, 8)] * 2
    F.linear(x, weight)
    assert len(products) == 2  # and is left


def test_what_the_kernel_does_not_take_goes_to_torch(products):
    class Quantized(torch.Tensor):
        pass

    weight = torch.randn(5, 8)
    with few_rows(CPU, "triton"), torch.inference_mode():
        F.linear(torch.randn(65, 8), weight)
        F.linear(torch.randn(0, 8), weight)
        F.linear(torch.randn(2, 8, dtype=torch.float64), weight.double())
        F.linear(torch.randn(2, 8), weight.T.contiguous().T)
        F.linear(torch.randn(2, 8), weight.as_subclass(Quantized))
        F.linear(torch.randn(2, 8), torch.randn(8))
        with pytest.raises(RuntimeError):  # torch's own
            F.linear(torch.randn(2, 7), weight)
    assert products == []


def test_only_what_the_table_knows_goes_to_the_kernel(products):
    entry = Entry("here", "float32", 2, 16, 5, 8, "triton", "test")
    with FewRows(CPU, chosen_by([entry])):
        for rows, N in [(1, 5), (2, 5), (16, 5), (17, 5), (2, 6)]:
            F.linear(torch.randn(rows, 8), torch.randn(N, 8))
    assert products == [(2, 5, 8), (16, 5, 8)]


@pytest.mark.parametrize(("name", "entered"), [("llama", "around"), ("opt", "inside")])
@torch.inference_mode()
def test_compiled_in_one_graph(name, entered, products):
    torch._dynamo.reset()
    model = tiny_models.language_model(name, layers=1)
    context = few_rows(CPU, "triton")
    ids = torch.tensor([tiny_models.tokens(10)])

    def forward(ids):
        return model(input_ids=ids, use_cache=False).logits

    def inside(ids):
        with context:
            return forward(ids)

    expected = forward(ids)
    layers = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    if entered == "inside":
        got = torch.compile(inside, fullgraph=True, backend="aot_eager")(ids)
    else:
        compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
        with context:
            got = compiled(ids)
        torch.testing.assert_close(compiled(ids), expected)  # and without it, torch's again
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert len(products) == layers


@pytest.mark.parametrize("rows", [1, 10])
def test_the_op_keeps_the_contract_of_an_op(rows):
    arguments = (
        torch.randn(2, rows, 24)[1:],
        torch.randn(7, 24),
        torch.randn(7),
        torch.zeros(ARRIVALS, dtype=torch.int32),
    )
    torch.library.opcheck(linear.default, arguments, test_utils=["test_schema", "test_faketensor"])
