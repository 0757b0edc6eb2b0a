"""docs/ops.md says which backend has which op, in the order in which they are chosen."""

import re
from pathlib import Path

from args_fast.ops import cuda, triton
from args_fast.ops.backends import ORDER
from args_fast.ops.schemas import FUSED, SCHEMAS

ROW = re.compile(r"^\| `(\w+)` \| ([\w, ]+) \| ([\w, ]+) \|$", re.M)


def has(backend, op):
    """Whether a backend that is built has an op, or all its parts."""
    offered = {"torch": SCHEMAS, "cpp": SCHEMAS, "triton": triton.OPS, "cuda": cuda.OPS}[backend]
    return op in offered or all(part in offered for part in FUSED.get(op, [op]))


def test_the_table_in_the_docs_is_the_one_in_the_code():
    text = Path(__file__).parents[2].joinpath("docs", "ops.md").read_text()
    documented = {op: (cpu.split(", "), gpu.split(", ")) for op, cpu, gpu in ROW.findall(text)}
    chosen = {
        op: (
            [b for b in ORDER["cpu"] if b != "triton" and has(b, op)],
            [b for b in ORDER["cuda"] if has(b, op)],
        )
        for op in SCHEMAS
    }
    assert documented == chosen
