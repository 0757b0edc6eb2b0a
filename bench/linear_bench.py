"""Which few-row products the engine sends to the Triton kernel: measured, and written as its table.

    python -m args_fast.bench.linear_bench                  # on a GPU: measures and reports
    python -m args_fast.bench.linear_bench --write-table    # and the engine uses what it found
    TRITON_INTERPRET=1 python -m args_fast.bench.linear_bench --device cpu --toy    # a rehearsal

Every distinct linear layer of six models, and their merged ones (q, k and v; gate and up), at the
rows that a step has: 1 (greedy), 10, 16 and 40 (candidates), by torch (cuBLAS on CUDA) and by
kernels/triton/linear.py. It is the op benchmark (bench/ops_bench.py) of one op: the same check,
table, files and way of continuing.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from args_fast.bench import ops_bench
from args_fast.bench.results import results_folder
from args_fast.models.linear import FILE, Entry, read_table, write_table

# Rows that the kernel pads alike, and the measurements that speak for all of them; 17 to 32 have
# none and stay with torch.
PADDINGS = {(1, 1): (1,), (2, 16): (10, 16), (33, 64): (40,)}
MARGIN = 0.98  # of torch's time: what the kernel has to stay under to enter the table


def entries(document: dict[str, Any], source: str, *, cuda: bool) -> list[Entry]:
    """The lines of the engine's table that follow: where the kernel beats torch at every measured
    row count of a padding, with and without a bias, it is used."""
    device = document["environment"]["device"]
    dtype, kind = ("bfloat16", "graph") if cuda else ("float32", "eager")
    cases = [(case["sizes"], _medians(case, kind)) for case in document["cases"]]
    lines = []
    for N, K in sorted({(sizes["N"], sizes["K"]) for sizes, _ in cases}):
        for (first, last), rows in PADDINGS.items():
            same = [
                (sizes["M"], medians)
                for sizes, medians in cases
                if (sizes["N"], sizes["K"]) == (N, K) and sizes["M"] in rows
            ]
            known = [medians for _, medians in same if medians is not None]
            if {M for M, _ in same} != set(rows) or len(known) < len(same):
                continue  # not measured, or not whole
            wins = all(triton < MARGIN * torch for torch, triton in known)
            use = "triton" if wins else "torch"
            lines.append(Entry(device, dtype, first, last, N, K, use, source))
    return lines


def _medians(case: dict[str, Any], kind: str) -> tuple[float, float] | None:
    """Of torch and of the kernel, by one kind of call. On CUDA by graphs alone: calls from Python
    may be the host's time, which says nothing of a kernel."""
    times = {row["name"]: row[kind] for row in case["rows"]}
    pair = times.get("torch"), times.get("triton")
    return (pair[0]["median"], pair[1]["median"]) if pair[0] and pair[1] else None


def merge(old: list[Entry], new: list[Entry]) -> list[Entry]:
    """New measurements replace those of the same device, type, rows and shape."""

    def key(entry: Entry) -> tuple:
        return entry.device, entry.dtype, entry.first, entry.last, entry.N, entry.K

    return list({key(entry): entry for entry in [*old, *new]}.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse")
    parser.add_argument("--seconds", type=float, default=540, help="begin no case after so long")
    parser.add_argument("--toy", action="store_true", help="tiny layers only")
    parser.add_argument("--results", type=Path, help="folder for results (bench/results)")
    parser.add_argument("--write-table", action="store_true", help="enter the winners into FILE")
    parser.add_argument("--table", type=Path, default=FILE, help=f"default: {FILE}")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    folder = results_folder(device, options.results)
    file, document = ops_bench.run(
        device, folder, seconds=options.seconds, toy=options.toy, op="linear"
    )
    new = entries(document, file.name, cuda=device.type == "cuda")
    for entry in new:
        print(f"rows {entry.first}-{entry.last}, {entry.N} x {entry.K}: {entry.use}")
    if options.write_table:
        old = read_table(options.table) if options.table.exists() else []
        write_table(merge(old, new), options.table)
        print(f"written to {options.table}")
    print(file.with_suffix(".md"))
    wrong = ops_bench.failures(document)
    for line in wrong:
        print(f"WRONG  {line}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
