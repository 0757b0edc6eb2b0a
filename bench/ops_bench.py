"""Every op against its peers: one run, one device, one table.

    python -m args_fast.bench.ops_bench [--device cuda] [--seconds 600]
    python -m args_fast.bench.ops_bench --op linear     # products of few rows, on the CPU

The most telling cases come first, and what the time does not reach is listed. Results are written
after every case, to bench/results/<device>/ops-<date>-<commit>.json and .md; a later run of the
same sources continues there. An implementation is timed only after its output has been compared
with the plain one; the exit status is 1 if one of ours was wrong, or failed.

Times are of a call made from Python ("eager", on CUDA often the host's time, not the kernel's) and,
on CUDA, of the same call several times in a row in a CUDA graph. GB/s: the bytes that the op cannot
avoid moving (inputs once, outputs once) over the better of the two medians.
"""

import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch

from args_fast.bench import ops_cases, results
from args_fast.bench.ops_cases import Call, Prepared
from args_fast.bench.slowdown import as_markdown, first_line
from args_fast.bench.timing import Sample, describe, measure, read_bandwidth

# Of one kernel alone a replay is mostly the launch of the graph. Calls that write move on by a row
# each, and the pages have room for 112.
CALLS_PER_GRAPH, CALLS_THAT_WRITE = 20, 4
READ = 2**28  # bytes of a plain read, more than any last cache has
FAILED = ("wrong", "failed")
BLANK = {"status": "checked", "note": None, "eager": None, "graph": None}  # of a row
HEADER = ("case", "implementation", "eager", "graph", "MB", "GB/s", "of read", "x peer", "note")


@torch.inference_mode()
def run(
    device: torch.device,
    folder: Path | None,
    *,
    seconds: float,
    toy: bool = False,
    timed: bool = True,
    op: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Work through the cases until ``seconds`` are over; returns the file and what is now in it.
    The arguments are the options of ``main``; ``timed`` is False for a check."""
    end = time.monotonic() + seconds
    type_name = str(dtype).removeprefix("torch.") if dtype else None
    parts = ["ops", op, type_name, "toy" if toy else None, None if timed else "checked"]
    kind = "-".join(filter(None, parts))
    file, document = results.begin(folder, kind, device, on=device.type, toy=toy, cases=[])
    done = {record["case"] for record in document["cases"]}
    waiting = [case for case in ops_cases.cases(toy, op) if case.name not in done]
    document["not_reached"] = [case.name for case in waiting]
    for case in waiting:
        if time.monotonic() >= end:
            break
        document["cases"].append(_run_case(case, device, dtype, toy, timed))
        document["not_reached"].remove(case.name)
        results.write(file, document, table(document))
    results.write(file, document, table(document))
    return file, document


def failures(document: dict[str, Any]) -> list[str]:
    """Implementations of ours that gave something else than the plain one, or nothing."""
    return [
        f"{case['case']}: {row['name']}: {row['note']}"
        for case in document["cases"]
        for row in case["rows"]
        if row["ours"] and row["status"] in FAILED
    ]


def _run_case(
    case: ops_cases.Case, device: torch.device, dtype: torch.dtype | None, toy: bool, timed: bool
) -> dict[str, Any]:
    record: dict[str, Any] = {"case": case.name, "op": case.op, "sizes": case.sizes, "rows": []}
    torch.manual_seed(0)
    try:
        prepared = ops_cases.prepare(case, device, dtype)
        record["floor_bytes"] = prepared.floor
        if timed:  # next to each case, as memory is not equally fast all the time
            record["bandwidth"] = read_bandwidth(device, 2**24 if toy else READ)
        for name in prepared.calls:
            if timed or name in prepared.ours:  # a check is of ours
                record["rows"].append(_run_row(name, prepared, device, toy, timed))
    except Exception as error:  # a case that fails must not take the others along
        record["rows"].append({"name": "all", "ours": True, **BLANK, **_failure(error)})
    gc.collect()
    return record


def _failure(error: Exception) -> dict[str, str]:
    """A case that does not fit into memory is skipped; whatever else goes wrong is a failure."""
    full = isinstance(error, torch.OutOfMemoryError)
    return {"status": "skipped" if full else "failed", "note": first_line(error)}


def _run_row(
    name: str, prepared: Prepared, device: torch.device, toy: bool, timed: bool
) -> dict[str, Any]:
    """Compare one implementation with the plain one and, if it is right, time it."""
    row: dict[str, Any] = {"name": name, "ours": name in prepared.ours, **BLANK}
    repeats, limit = (5, 0.02) if toy else (20, 0.5)
    call = prepared.calls[name]
    try:
        off = prepared.difference(name)
        if off is not None:
            row.update(status="wrong", note=f"differs from plain by up to {off:.3g}")
        elif timed:
            options: dict[str, Any] = {"repeats": repeats, "limit": limit, "drained": True}
            row["eager"] = measure(call, device, per=prepared.per_call, **options)
            row["status"] = "timed"
            if device.type == "cuda":
                prepared.reset()
                row["graph"], row["note"] = _graph(prepared, call, device)
    except Exception as error:  # one that fails must not take the others along
        row.update(_failure(error))
    prepared.reset()
    return row


def _graph(
    prepared: Prepared, call: Call, device: torch.device
) -> tuple[Sample | None, str | None]:
    """The call replayed from a CUDA graph, or why it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        calls = CALLS_THAT_WRITE if prepared.changed else CALLS_PER_GRAPH
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
        return measure(graph.replay, device, limit=0.5, per=calls * prepared.per_call), None
    except Exception as error:
        torch.cuda.synchronize()
        return None, f"not captured: {first_line(error)}"


# ---- the table -----------------------------------------------------------------------------------


def table(document: dict[str, Any]) -> str:
    """The document as Markdown, an op at a time."""
    reads = [case["bandwidth"] / 1e9 for case in document["cases"] if "bandwidth" in case]
    read = f" Plain reads reached {min(reads):.0f} to {max(reads):.0f} GB/s." if reads else ""
    lines = [
        f"# Ops on {document['environment']['device']}\n",
        f"{describe(document['environment'])}.{read}",
        *(["**A rehearsal at toy sizes: the figures mean nothing.**"] if document["toy"] else []),
        "Median (quartiles) in microseconds per call; GB/s: of bytes that must be moved; of read:",
        "the same as a share of what a plain read reached just before; x peer: how many times as",
        "fast as the best peer, by eager calls and by graphs. Ours in bold.",
    ]
    for op in dict.fromkeys(case["op"] for case in document["cases"]):
        cases = [case for case in document["cases"] if case["op"] == op]
        rows = [_cells(case, row) for case in cases for row in case["rows"]]
        lines += [f"\n## {op}\n", as_markdown([HEADER, *rows])]
    if document["not_reached"]:
        lines += ["\n## Not reached\n", *(f"- {name}" for name in document["not_reached"])]
    return "\n".join(lines) + "\n"


def _cells(case: dict[str, Any], row: dict[str, Any]) -> list[str]:
    floor, bandwidth = case.get("floor_bytes", 0), case.get("bandwidth")
    medians = {kind: row[kind]["median"] for kind in ("eager", "graph") if row[kind]}
    rate = floor / min(medians.values()) if medians else None
    ratios = []
    for kind, median in medians.items():  # each against the best peer of its own kind of call
        peers = [other for other in case["rows"] if not other["ours"] and other[kind]]
        ratios += [f"{min(peer[kind]['median'] for peer in peers) / median:.2f}"] if peers else []
    fault = "" if row["status"] in ("timed", "checked") else f"{row['status']}: "
    return [
        " ".join(f"{axis}={size}" for axis, size in case["sizes"].items()),
        f"**{row['name']}**" if row["ours"] else row["name"],
        *(_time(row[kind]) for kind in ("eager", "graph")),
        f"{floor / 1e6:.2f}",
        f"{rate / 1e9:.1f}" if rate else "",
        f"{rate / bandwidth:.0%}" if rate and bandwidth else "",
        " / ".join(ratios),
        fault + (row["note"] or "").replace("|", "/"),
    ]


def _time(sample: Sample | None) -> str:
    if sample is None:
        return ""
    low, median, high = (sample[name] * 1e6 for name in ("low", "median", "high"))
    return f"{median:.1f} ({low:.1f}-{high:.1f})"


def main(arguments: list[str] | None = None) -> int:
    parser = results.parser(__doc__)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=here, help=f"cpu or cuda (here: {here})")
    parser.add_argument("--seconds", type=float, default=600, help="begin no case after them (600)")
    parser.add_argument("--op", help="one op (default: those of a step; linear is not among them)")
    parser.add_argument(
        "--type", choices=["float32", "bfloat16", "int8"], help="int8: of the weights of linear"
    )
    parser.add_argument("--toy", action="store_true", help="a rehearsal at toy sizes")
    parser.add_argument("--check", action="store_true", help="compare outputs, measure nothing")
    options = parser.parse_args(arguments)
    if options.op == "linear" and options.device != "cpu":
        parser.error("linear is an op of the CPU; add --device cpu")
    file, document = run(
        torch.device(options.device),
        options.results,
        seconds=options.seconds,
        toy=options.toy,
        timed=not options.check,
        op=options.op,
        dtype=getattr(torch, options.type) if options.type else None,
    )
    wrong = failures(document)
    for line in wrong:
        print(f"WRONG  {line}")
    print(f"{len(document['cases'])} cases, {len(wrong)} wrong; {file.with_suffix('.md')}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
