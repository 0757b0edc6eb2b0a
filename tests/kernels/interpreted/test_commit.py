"""The Triton commit against assignments one row at a time."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from triton.runtime import interpreter

from args_fast.kernels.commit import commit, unsupported

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(L, B, N, Hkv, D, page_size, lengths, dtype=torch.float32, seed=0):
    """Arguments of commit, with pages out of order, and the length of each sequence."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    P = max(lengths) // page_size + 1
    pages = torch.randperm(B * P, generator=generator) + 1
    return {
        "tail_k": random(L, B, N, Hkv, D),
        "tail_v": random(L, B, N, Hkv, D),
        "branch": torch.randint(N, (B,), generator=generator),
        "k_pages": random(L, B * P + 2, page_size, Hkv, D),
        "v_pages": random(L, B * P + 2, page_size, Hkv, D),
        "page_table": pages.view(B, P).int(),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
    }


def assert_right(arguments):
    """The one row of each layer is written, and nothing else, and the lengths are one more."""
    kept = ("k_pages", "v_pages")
    expected = {name: arguments[name].clone() for name in (*kept, "lengths")}
    page_size = arguments["k_pages"].shape[2]
    for b, t in enumerate(arguments["lengths"].tolist()):
        page, n = int(arguments["page_table"][b, t // page_size]), int(arguments["branch"][b])
        for layer in range(len(arguments["k_pages"])):
            for pages, tail in zip(kept, ("tail_k", "tail_v"), strict=True):
                expected[pages][layer, page, t % page_size] = arguments[tail][layer, b, n]
        expected["lengths"][b] = t + 1
    assert unsupported(**arguments) is None
    assert commit(**arguments) is None
    for name, wanted in expected.items():
        assert torch.equal(arguments[name], wanted), name


@settings(max_examples=40, phases=[Phase.generate])
@given(
    L=st.integers(1, 5),
    N=st.integers(1, 11),
    heads=st.sampled_from([(1, 1), (1, 64), (2, 80), (3, 7), (8, 16), (5, 256)]),
    page_size=st.sampled_from([1, 3, 16]),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_any_commit(L, N, heads, page_size, lengths, dtype, seed):
    assert_right(inputs(L, len(lengths), N, *heads, page_size, lengths, dtype, seed))


def test_commits_follow_one_another():
    # The count of programs that have come must be gone when the next launch begins.
    arguments = inputs(3, 2, 4, 2, 8, 4, [3, 9])
    arguments["page_table"] = torch.arange(1, 13, dtype=torch.int32).view(2, 6)
    for name in ("k_pages", "v_pages"):
        arguments[name] = torch.zeros(3, 13, 4, 2, 8)
    for _ in range(6):
        arguments["branch"] = (arguments["branch"] + 1) % 4
        assert_right(arguments)
    assert arguments["lengths"].tolist() == [9, 15]


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2, 0, 3, 1]])
def test_whichever_program_comes_last_advances_the_length(order, monkeypatch):
    # The interpreter runs programs in the order of their numbers; a GPU in any.
    builder, ran = interpreter.interpreter_builder, []
    in_order = builder.set_grid_idx

    def shuffled(x, y, z):
        ran.append(order[x])
        in_order(order[x], y, z)

    monkeypatch.setattr(builder, "set_grid_idx", shuffled)
    assert_right(inputs(4, 1, 3, 2, 8, 4, [5]))
    assert ran == order


def test_the_longest_prefix():
    # t and the count of programs share one number: neither may reach into the other.
    arguments = inputs(3, 1, 2, 1, 1, (1 << 20) - 1, [(1 << 20) - 2])
    assert_right(arguments)
    arguments["page_table"] = arguments["page_table"].repeat(1, 2)
    assert "prefixes below 1048576" in unsupported(**arguments)


def test_tails_need_not_be_contiguous():
    arguments = inputs(2, 3, 4, 2, 8, 4, [0, 3, 4])
    for name in ("tail_k", "tail_v"):
        wide = torch.full((2, 3, 4, 2, 11), torch.nan)
        wide[..., 3:] = arguments[name]
        arguments[name] = wide[..., 3:]
    assert_right(arguments)
    for name in ("tail_k", "tail_v"):
        arguments[name] = arguments[name].transpose(0, 2).contiguous().transpose(0, 2)
    assert_right(arguments)


def test_the_table_may_be_a_part_of_a_wider_one():
    arguments = inputs(2, 3, 4, 2, 8, 4, [0, 3, 4])
    wide = torch.full((3, 5), 99, dtype=torch.int32)
    wide[:, :2] = arguments["page_table"]
    arguments["page_table"] = wide[:, :2]
    assert_right(arguments)


def test_pages_that_the_kernel_cannot_write_to_are_refused():
    arguments = inputs(2, 1, 2, 2, 8, 4, [0])
    pages = arguments["k_pages"]
    arguments["k_pages"] = pages.transpose(3, 4).contiguous().transpose(3, 4)
    assert "side by side" in unsupported(**arguments)
    arguments["k_pages"] = pages.expand(2, *pages.shape[1:])
    arguments["lengths"] = torch.zeros(4, dtype=torch.int32)[::2]
    assert "lengths" in unsupported(**arguments)
