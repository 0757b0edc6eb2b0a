"""The engine's table of few-row products, from what bench/ops_bench.py measured of ``linear``.

    python -m args_fast.bench.ops_bench --op linear
    python scripts/linear_table.py bench/results/<device>/ops-linear-<date>-<commit>.json

Measured are the linear layers of six models, and their merged ones (q, k and v; gate and up), at
the rows that a step has: 1 (greedy), 10, 16 and 40 (candidates), by torch (cuBLAS on CUDA) and by
kernels/triton/linear.py. Entries of the same device, type, rows and shape are replaced.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from args_fast.models.linear import FILE, Entry, read_table, write_table

# Rows that the kernel pads alike, and the measurements that speak for all of them; 17 to 32 have
# none and stay with torch.
PADDINGS = {(1, 1): (1,), (2, 16): (10, 16), (33, 64): (40,)}
MARGIN = 0.98  # of torch's time: what the kernel has to stay under to enter the table


def entries(document: dict[str, Any], source: str) -> list[Entry]:
    """The lines of the table that follow: where the kernel beats torch at every measured row count
    of a padding, with and without a bias, it is used."""
    device = document["environment"]["device"]
    on_cuda = document["on"] == "cuda"
    dtype, kind = ("bfloat16", "graph") if on_cuda else ("float32", "eager")
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the JSON file of ops_bench")
    parser.add_argument("--table", type=Path, default=FILE, help=f"what is written ({FILE})")
    options = parser.parse_args(arguments)
    new = entries(json.loads(options.results.read_text()), options.results.name)
    for entry in new:
        print(f"rows {entry.first}-{entry.last}, {entry.N} x {entry.K}: {entry.use}")
    old = read_table(options.table) if options.table.exists() else []
    write_table(merge(old, new), options.table)
    print(f"written to {options.table}")


if __name__ == "__main__":
    main()
