"""What the C++ ops refuse: arguments that would make them read or write beside their tensors."""

import pytest
import torch
from cpp_ops import needs_cpp, op
from op_cases import attention_case, commit_case, random

from args_fast.ops.schemas import SCHEMAS

pytestmark = needs_cpp


def good(name):
    """Arguments that an op takes, by name."""
    values = {
        "topk_logprobs": lambda: [random(2, 50), 7],
        "branch_attention": lambda: [*attention_case([17, 20], 3, 4, 2, 8), 0, 0.0, torch.zeros(4)],
        "select": lambda: [
            *(random(2, 3, 8), random(8), random(1), random(2, 3), random(2), torch.ones(2)),
            random(2, 3),
        ],
        "commit": lambda: commit_case([15, 3]),
    }[name]()
    names = [part.split()[1].split("=")[0] for part in SCHEMAS[name].split(") ->")[0].split(", ")]
    return dict(zip(names, values, strict=True))


REFUSED = {
    "topk_logprobs": {
        "k above V": {"k": 51},
        "no k": {"k": 0},
        "a row": {"logits": lambda x: x[0]},
        "no vocabulary": {"logits": lambda x: x[:, :0]},
        "float64": {"logits": lambda x: x.double()},
        "columns": {"logits": lambda x: x[:, ::2]},
    },
    "branch_attention": {
        "q of three dimensions": {"q": lambda x: x[0]},
        "more sequences in q": {"q": lambda x: torch.cat([x, x])},
        "heads that do not group": {"q": lambda x: x[:, :, :3]},
        "another head size": {"q": lambda x: x[..., :7]},
        "fewer sequences in tail_k": {"tail_k": lambda x: x[:1]},
        "fewer rows in tail_k": {"tail_k": lambda x: x[:, :2]},
        "fewer rows in tail_v": {"tail_v": lambda x: x[:, :2]},
        "fewer heads in tail_v": {"tail_v": lambda x: x[:, :, :1]},
        "another dtype": {"tail_v": lambda x: x.half()},
        "fewer pages in v_pages": {"v_pages": lambda x: x[:2]},
        "smaller pages in v_pages": {"v_pages": lambda x: x[:, :8]},
        "another page head size": {"k_pages": lambda x: x[..., :4]},
        "no kv heads": {
            n: lambda x: x[:, :, :0] for n in ("tail_k", "tail_v", "k_pages", "v_pages")
        },
        "a shorter table": {"page_table": lambda x: x[:1]},
        "a narrower table": {"page_table": lambda x: x[:, :1]},
        "a table of i64": {"page_table": lambda x: x.long()},
        "a page beyond the last": {"page_table": lambda x: x + 5},
        "a page before the first": {"page_table": lambda x: x - 9},
        "fewer lengths": {"prefix_lengths": lambda x: x[:1]},
        "a length below 0": {"prefix_lengths": lambda x: x - 18},
        "a length beyond the table": {"prefix_lengths": lambda x: x + 100},
        "lengths of i64": {"prefix_lengths": lambda x: x.long()},
        "a smaller mask": {"tail_mask": lambda x: x[:2, :2].contiguous()},
        "a mask of one row": {"tail_mask": lambda x: x[:1]},
        "a mask of ints": {"tail_mask": lambda x: x.int()},
        "a turned q": {"q": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)},
        "a window below 0": {"sliding_window": -1},
        "fewer sinks": {"sinks": lambda x: x[:3]},
    },
    "select": {
        "two dimensions": {"hidden": lambda x: x[0]},
        "no candidates": {n: lambda x: x[:, :0] for n in ("hidden", "logprobs", "noise")},
        "fewer candidates": {"hidden": lambda x: x[:, :2]},
        "more sequences": {"hidden": lambda x: torch.cat([x, x])},
        "a shorter head": {"head_weight": lambda x: x[:7]},
        "an empty bias": {"head_bias": lambda x: x[:0]},
        "fewer logprobs": {"logprobs": lambda x: x[:, :2].contiguous()},
        "logprobs in 16 bits": {"logprobs": lambda x: x.half()},
        "fewer weights": {"w": lambda x: x[:1]},
        "fewer temperatures": {"temperature": lambda x: x[:1]},
        "less noise": {"noise": lambda x: x[:, :2]},
        "noise of one row": {"noise": lambda x: x[:1]},
        "hidden of ints": {"hidden": lambda x: x.int()},
    },
    "commit": {
        "another tail_v": {"tail_v": lambda x: x[:, :, :2].contiguous()},
        "fewer layers in v_pages": {"v_pages": lambda x: x[:2]},
        "fewer pages in v_pages": {"v_pages": lambda x: x[:, :2].contiguous()},
        "another head size": {"k_pages": lambda x: x[..., :4].contiguous()},
        "another dtype": {"k_pages": lambda x: x.half()},
        "pages with gaps": {"k_pages": lambda x: x.transpose(1, 2)},
        "a branch beyond the tail": {"branch": lambda x: torch.full_like(x, 4)},
        "a branch below 0": {"branch": lambda x: torch.full_like(x, -1)},
        "fewer branches": {"branch": lambda x: x[:1]},
        "a branch of i32": {"branch": lambda x: x.int()},
        "a full table": {"lengths": lambda x: torch.tensor([15, 16], dtype=torch.int32)},
        "a length below 0": {"lengths": lambda x: torch.tensor([3, -1], dtype=torch.int32)},
        "fewer lengths": {"lengths": lambda x: x[:1]},
        "a shorter table": {"page_table": lambda x: x[:1]},
        "a page beyond the last": {"page_table": lambda x: torch.tensor([[1], [3]]).int()},
        "a page before the first": {"page_table": lambda x: torch.tensor([[1], [-1]]).int()},
        "float64": {
            n: lambda x: x.double() for n in ("tail_k", "tail_v", "k_pages", "v_pages")
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_arguments_that_refusals_start_from_are_taken(name):
    op(name)(*good(name).values())


@pytest.mark.parametrize(
    ("name", "why"), [(name, why) for name, cases in REFUSED.items() for why in cases]
)
def test_wrong_arguments_raise_before_any_memory_is_touched(name, why):
    arguments = good(name)
    for argument, change in REFUSED[name][why].items():
        arguments[argument] = change(arguments[argument]) if callable(change) else change
    before = {n: x.clone() for n, x in arguments.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(RuntimeError, match="args_fast: "):
        op(name)(*arguments.values())
    for n, x in before.items():
        torch.testing.assert_close(arguments[n], x, atol=0, rtol=0, equal_nan=True)
