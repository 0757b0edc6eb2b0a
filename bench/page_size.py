"""What a page's size costs: the attention over shuffled pages, and the rows that stay empty.

    python -m args_fast.bench.page_size

Larger pages make fewer look-ups and longer runs of memory. Smaller ones leave less of the last page
empty (half a page per sequence and model, on average), and are shared by prompts that part earlier.
Writes bench/results/<device>/page-size.{json,md}; ``args_fast.kvcache.storage.PAGE_SIZE`` is chosen
from it.
"""

import argparse
import json
from pathlib import Path

import torch

from args_fast import ops
from args_fast.bench.timing import device_name, environment, measure, slug

SIZES = (8, 16, 32, 64, 128)
ROWS = (1, 10)
HEADS, HEAD_SIZE = 12, 64  # one layer of OPT-125M
RESULTS = Path(__file__).parent / "results"


def attend(page_size: int, rows: int, t: int, device: torch.device) -> float:
    """Median seconds of one layer's attention over t tokens in pages that lie anywhere."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    P = -(-t // page_size)
    generator = torch.Generator().manual_seed(0)
    table = torch.randperm(4 * P, generator=generator)[None, :P].int().to(device)
    pages = [
        torch.randn(4 * P, page_size, HEADS, HEAD_SIZE, device=device, dtype=dtype)
        for _ in range(2)
    ]
    q, k, v = torch.randn(3, 1, rows, HEADS, HEAD_SIZE, device=device, dtype=dtype)
    lengths = torch.tensor([t], dtype=torch.int32, device=device)
    mask = torch.eye(rows, dtype=torch.bool, device=device)
    inputs = (q, k, v, *pages, table, lengths, mask, HEAD_SIZE**-0.5, 0, 0.0, None)
    return measure(
        lambda: ops.branch_attention(*inputs), device, warm_up=20, repeats=400, seconds=1.0
    ).median


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefix", type=int, default=512, help="tokens (512)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    t = arguments.prefix
    times = {rows: {size: attend(size, rows, t, device) for size in SIZES} for rows in ROWS}

    facts = environment(device)
    folder = arguments.results / slug(device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    record = {"environment": facts, "prefix": t, "seconds": times}
    (folder / "page-size.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [
        "# The size of a page",
        "",
        f"Measured on {facts['device']}, {facts['threads']} threads, torch "
        f"{facts['versions']['torch']}, {facts['date']}: attention of one layer of OPT-125M "
        f"({HEADS} heads of {HEAD_SIZE}) over {t} tokens, medians in µs.",
        "",
        "| tokens per page | "
        + " | ".join(f"N = {rows}" for rows in ROWS)
        + " | empty, of a page |",
        "| ---: |" + " ---: |" * (len(ROWS) + 1),
    ]
    for size in SIZES:
        cells = " | ".join(f"{times[rows][size] * 1e6:.0f}" for rows in ROWS)
        lines.append(f"| {size} | {cells} | {size / 2:g} tokens |")
    text = "\n".join(lines) + "\n"
    (folder / "page-size.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
