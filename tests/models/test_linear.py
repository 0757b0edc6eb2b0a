"""Which linear layers go to which kernel. That they compute them is tested in tests/csrc/ and
tests/kernels/interpreted/."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny_models import language_model, tokens
from torch.nn import functional as F

from args_fast.errors import BackendError
from args_fast.models import linear
from args_fast.models.linear import Entry, chosen_by, few_rows, read_table, write_table
from args_fast.ops import cpp

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
ENTRY = Entry("NVIDIA T1", "bfloat16", 2, 16, 4096, 11008, "triton", "linear-x.json")
LOSER = Entry("NVIDIA T1", "bfloat16", 1, 1, 4096, 11008, "torch", "linear-x.json")


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch):
    monkeypatch.delenv("ARGS_FAST_LINEAR", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))


def test_nothing_is_entered_where_nothing_is_measured_to_gain():
    elsewhere = Entry("NVIDIA T2", "bfloat16", 1, 1, 64, 64, "triton", "linear-x.json")
    for context in (
        few_rows(CUDA, table=[]),
        few_rows(CUDA, table=[LOSER, elsewhere]),
        few_rows(CUDA, "torch", table=[ENTRY]),
    ):
        assert isinstance(context, nullcontext)


def test_a_winner_on_this_device_is_used():
    with pytest.raises(BackendError, match=r"NVIDIA T1; the kernel needs compute capability 8\.0"):
        few_rows(CUDA, table=[LOSER, ENTRY])


def test_an_entry_covers_its_rows_and_its_shape_alone():
    chosen = chosen_by([ENTRY])
    assert [rows for rows in range(65) if chosen(torch.bfloat16, rows, 4096, 11008)] == list(
        range(2, 17)
    )
    assert not chosen(torch.float16, 8, 4096, 11008)
    assert not chosen(torch.bfloat16, 8, 11008, 4096)


def test_the_environment_can_ask_for_one_and_an_argument_overrules_it(monkeypatch):
    monkeypatch.setenv("ARGS_FAST_LINEAR", "triton")
    with pytest.raises(BackendError, match="only in its interpreter"):
        few_rows(CPU)
    assert isinstance(few_rows(CPU, "torch"), nullcontext)
    monkeypatch.setenv("ARGS_FAST_LINEAR", "cpp")
    with pytest.raises(BackendError, match="'cpp' on cuda; it runs on the CPU"):
        few_rows(CUDA)
    monkeypatch.setenv("ARGS_FAST_LINEAR", "torch")
    assert isinstance(few_rows(CUDA, table=[ENTRY]), nullcontext)
    monkeypatch.setenv("ARGS_FAST_LINEAR", "cutlass")
    with pytest.raises(BackendError, match="'cutlass'"):
        few_rows(CPU)


# ---- the CPU -------------------------------------------------------------------------------------

needs_cpp = pytest.mark.skipif(cpp.status() != "built", reason=f"C++ ops: {cpp.status()}")


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
@pytest.mark.parametrize("use", [None, "cpp"])
def test_on_the_cpu_every_product_of_few_rows_is_ours(products, use):
    weight, bias = torch.randn(5, 8), torch.randn(5)
    context = few_rows(CPU, use, table=[])
    for _ in range(2):  # it can be entered again
        with context, torch.inference_mode():
            for x in (torch.randn(8), torch.randn(64, 8), torch.randn(2, 5, 8), torch.randn(65, 8)):
                wanted = torch.addmm(bias, x.view(-1, 8), weight.T).view(*x.shape[:-1], 5)
                torch.testing.assert_close(F.linear(x, weight, bias=bias), wanted)
    assert products == [(1, 5, 8), (64, 5, 8), (10, 5, 8), (65, 5, 8)] * 2
    F.linear(torch.randn(8), weight)
    assert len(products) == 8  # and is left


@needs_cpp
def test_products_of_many_rows_in_16_bits_are_left_to_torch(products):
    with few_rows(CPU, table=[]), torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float16):
            F.linear(torch.randn(65, 8).to(dtype), torch.randn(5, 8).to(dtype))
    assert products == []


@needs_cpp
def test_what_the_cpu_kernel_does_not_take_goes_to_torch(products):
    class Quantized(torch.Tensor):
        pass

    weight = torch.randn(5, 8)
    with few_rows(CPU, table=[]), torch.inference_mode():
        F.linear(torch.randn(0, 8), weight)
        F.linear(torch.randn(2, 8, dtype=torch.float64), weight.double())
        F.linear(torch.randn(2, 8), weight.T.contiguous().T)
        F.linear(torch.randn(2, 8), weight.as_subclass(Quantized))
        F.linear(torch.randn(2, 8), torch.randn(8))
    assert products == []


@needs_cpp
def test_a_measurement_sends_its_products_to_torch(products):
    loser = Entry(cpp.kernels(), "float32", 2, 16, 5, 8, "torch", "linear-x.json")
    elsewhere = Entry("another", "float32", 1, 64, 5, 8, "torch", "linear-x.json")
    with few_rows(CPU, table=[loser, elsewhere]):
        for rows, N in [(1, 5), (2, 5), (16, 5), (17, 5), (2, 6)]:
            F.linear(torch.randn(rows, 8), torch.randn(N, 8))
    assert products == [(1, 5, 8), (17, 5, 8), (2, 6, 8)]


@needs_cpp
@pytest.mark.parametrize("name", ["llama", "opt"])
@torch.inference_mode()
def test_the_cpu_kernel_is_part_of_one_compiled_graph(name):
    torch._dynamo.reset()
    model = language_model(name)
    context = few_rows(CPU, table=[])
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


def test_without_the_cpu_kernel_torch_runs(monkeypatch):
    monkeypatch.setattr(linear, "cpu_linear", None)
    monkeypatch.setattr(cpp, "LIBRARY", Path("/nowhere/_cpu.so"))
    assert isinstance(few_rows(CPU), nullcontext)
    with pytest.raises(BackendError, match="'cpp', which is not built"):
        few_rows(CPU, "cpp")


# ---- the table -----------------------------------------------------------------------------------


def test_triton_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("args_fast.models.linear.find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install triton"):
        few_rows(CPU, "triton")


def test_a_table_comes_back_as_it_was_written(tmp_path):
    file = tmp_path / "table.json"
    for entries in ([], [ENTRY], [ENTRY, LOSER]):
        write_table(entries, file)
        assert set(read_table(file)) == set(entries)
        assert len(file.read_text().splitlines()) == (len(entries) + 2 if entries else 1)


def test_the_table_that_is_shipped_is_sound():
    table = read_table()
    assert all(1 <= entry.first <= entry.last <= 64 for entry in table)
    assert all(entry.use in ("triton", "cpp", "torch") and entry.measured for entry in table)
