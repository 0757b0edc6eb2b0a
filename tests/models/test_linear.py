"""Which linear layers go to the C++ kernel. That it computes them is tested in tests/csrc/."""

import math
from contextlib import nullcontext

import pytest
import torch
from tiny_models import language_model, tokens
from torch.nn import functional as F

from args_fast.errors import BackendError
from args_fast.models import linear
from args_fast.models.linear import few_rows
from args_fast.ops import cpp

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
needs_cpp = pytest.mark.skipif(cpp.status() != "built", reason=f"C++ ops: {cpp.status()}")


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch):
    monkeypatch.delenv("ARGS_FAST_LINEAR", raising=False)


def test_the_kernel_is_of_the_cpu():
    assert isinstance(few_rows(CUDA), nullcontext)


def test_the_environment_leaves_them_to_torch(monkeypatch):
    monkeypatch.setenv("ARGS_FAST_LINEAR", "torch")
    assert isinstance(few_rows(CPU), nullcontext)
    monkeypatch.setenv("ARGS_FAST_LINEAR", "cutlass")
    with pytest.raises(BackendError, match=r"ARGS_FAST_LINEAR is 'cutlass'.*'torch'"):
        few_rows(CPU)


def test_without_the_kernel_torch_runs(monkeypatch):
    monkeypatch.setattr(linear, "cpu_linear", None)
    assert isinstance(few_rows(CPU), nullcontext)


@pytest.fixture
def products(monkeypatch):
    """The (rows, N, K) of the products that the C++ kernel made."""
    made, kernel = [], linear.cpu_linear

    def recorded(x, weight, bias):
        made.append((x.numel() // x.shape[-1], *weight.shape))
        return kernel(x, weight, bias)

    monkeypatch.setattr(linear, "cpu_linear", recorded)
    return made


@needs_cpp
@pytest.mark.parametrize("most", [linear.ROWS, math.inf])
def test_on_the_cpu_every_product_of_few_rows_is_ours(products, monkeypatch, most):
    monkeypatch.setattr(linear, "FLOAT32_ROWS", most)
    weight, bias = torch.randn(5, 8), torch.randn(5)
    context = few_rows(CPU)
    for _ in range(2):  # it can be entered again
        with context, torch.inference_mode():
            for x in (torch.randn(8), torch.randn(64, 8), torch.randn(2, 5, 8), torch.randn(65, 8)):
                wanted = torch.addmm(bias, x.view(-1, 8), weight.T).view(*x.shape[:-1], 5)
                torch.testing.assert_close(F.linear(x, weight, bias=bias), wanted)
    many = [(65, 5, 8)] if most > 64 else []
    assert products == [(1, 5, 8), (64, 5, 8), (10, 5, 8), *many] * 2
    F.linear(torch.randn(8), weight)
    assert len(products) == 2 * (3 + len(many))  # and is left


@needs_cpp
def test_products_of_many_rows_in_16_bits_are_left_to_torch(products):
    with few_rows(CPU), torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float16):
            F.linear(torch.randn(65, 8).to(dtype), torch.randn(5, 8).to(dtype))
    assert products == []


@needs_cpp
def test_what_the_cpu_kernel_does_not_take_goes_to_torch(products):
    class Quantized(torch.Tensor):
        pass

    weight = torch.randn(5, 8)
    with few_rows(CPU), torch.inference_mode():
        F.linear(torch.randn(0, 8), weight)
        F.linear(torch.randn(2, 8, dtype=torch.float64), weight.double())
        F.linear(torch.randn(2, 8), weight.T.contiguous().T)
        F.linear(torch.randn(2, 8), weight.as_subclass(Quantized))
        F.linear(torch.randn(2, 8), torch.randn(8))
    assert products == []


@needs_cpp
@pytest.mark.parametrize("name", ["llama", "opt"])
@torch.inference_mode()
def test_the_cpu_kernel_is_part_of_one_compiled_graph(name):
    torch._dynamo.reset()
    model = language_model(name)
    context = few_rows(CPU)
    kernels = []

    def backend(graph, inputs):
        kernels.extend(node for node in graph.graph.nodes if node.target is linear.cpu_linear)
        return graph.forward

    ids = torch.tensor([tokens(10)])

    def forward(ids):
        with context:
            return model(input_ids=ids, use_cache=False).logits

    expected = model(input_ids=ids, use_cache=False).logits
    got = torch.compile(forward, fullgraph=True, backend=backend)(ids)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert len(kernels) == sum(isinstance(m, torch.nn.Linear) for m in model.modules())
