"""Which linear layers go to the Triton kernel. That it computes them is tested in
tests/kernels/interpreted/."""

from contextlib import nullcontext

import pytest
import torch

from args_fast.errors import BackendError
from args_fast.models.linear import Entry, chosen_by, few_rows, read_table, write_table

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
        few_rows(CPU),
        few_rows(CPU, table=[ENTRY]),
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
    monkeypatch.setenv("ARGS_FAST_LINEAR", "torch")
    assert isinstance(few_rows(CUDA, table=[ENTRY]), nullcontext)
    monkeypatch.setenv("ARGS_FAST_LINEAR", "cutlass")
    with pytest.raises(BackendError, match="'cutlass'"):
        few_rows(CPU)


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
    assert all(entry.use in ("triton", "torch") and entry.measured for entry in table)
