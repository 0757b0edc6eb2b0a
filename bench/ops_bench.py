"""Every op against its peers: one run, one device, one table.

    python -m args_fast.bench.ops_bench [--device cuda] [--seconds 600]

The most telling cases come first, and what the time does not reach is listed. Results are written
after every case, to ops.json and ops.md in bench/results/<device>/; a later run of the same sources
goes on where it stopped. An implementation is timed only after its output has been compared with
the plain one; the exit status is 1 if one of ours was wrong, or failed.

Times are per call, of a call made from Python ("eager") and, on CUDA, of the same call replayed
from a CUDA graph, which has no launch overhead. GB/s are the bytes that the op cannot avoid to move
(inputs once, outputs once) over the better of the two medians, beside the bandwidth of a copy.
"""

import argparse
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from args_fast.bench import ops_cases
from args_fast.bench.timing import copy_bandwidth, device_name, environment, measure, slug

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def main() -> int:
    arguments = _arguments()
    device = torch.device(arguments.device)
    folders = [Path(arguments.results) / slug(device_name(device))]
    if arguments.out:
        folders.append(Path(arguments.out))
    with torch.inference_mode():
        document = run(
            device,
            folders,
            seconds=arguments.seconds,
            toy=arguments.toy,
            timed=not arguments.check,
            only=arguments.op,
        )
    wrong = failures(document)
    for line in wrong:
        print(f"WRONG  {line}")
    print(f"{len(document['cases'])} cases, {len(wrong)} wrong; {folders[0] / 'ops.md'}")
    return bool(wrong)


def run(
    device: torch.device,
    folders: list[Path],
    *,
    seconds: float,
    toy: bool = False,
    timed: bool = True,
    only: str | None = None,
) -> dict[str, Any]:
    """Work through the cases until ``seconds`` are over, and return what is now in ops.json.

    Args:
        device: where the ops run.
        folders: where ops.json and ops.md are written; the first is what a run continues.
        seconds: no case is begun after this time.
        toy: sizes that show that the program works, and nothing else.
        timed: False compares outputs and measures nothing.
        only: one op.
    """
    end = time.monotonic() + seconds
    document = _begin(device, folders[0], toy, timed)
    done = {case["case"] for case in document["cases"]}
    waiting = [c for c in ops_cases.cases(toy) if only in (None, c.op) and c.name not in done]
    for i, case in enumerate(waiting):
        document["not_reached"] = [later.name for later in waiting[i:]]
        if time.monotonic() >= end:
            break
        document["cases"].append(_run_case(case, device, toy, timed))
        document["not_reached"] = document["not_reached"][1:]
        _save(document, folders)
    _save(document, folders)
    return document


def failures(document: dict[str, Any]) -> list[str]:
    """Implementations of ours that gave something else than the plain one, or nothing."""
    return [
        f"{case['case']}: {row['name']}: {row['note']}"
        for case in document["cases"]
        for row in case["rows"]
        if row["ours"] and row["status"] in ("wrong", "failed")
    ]


def sources() -> str:
    """A fingerprint of what runs, binaries with it: known without git, and unlike a commit it
    changes with every edit."""
    digest = hashlib.sha256()
    for package in ("args_fast", "args_fast.kernels", "args_fast.bench"):
        folder = Path(next(iter(import_module(package).__path__)))
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".so")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _begin(device: torch.device, folder: Path, toy: bool, timed: bool) -> dict[str, Any]:
    kind = {"sources": sources(), "toy": toy, "timed": timed}
    facts = environment(device)
    path = folder / "ops.json"
    if path.exists():
        found = json.loads(path.read_text())
        same = ("device", "threads", "versions")
        if found["kind"] == kind and all(found["environment"][n] == facts[n] for n in same):
            return found
    bandwidth = copy_bandwidth(device, 2**24 if toy else None) if timed else None
    return {
        "environment": facts,
        "kind": kind,
        "copy_bandwidth": bandwidth,
        "cases": [],
        "not_reached": [],
    }


def _run_case(case: ops_cases.Case, device: torch.device, toy: bool, timed: bool) -> dict[str, Any]:
    began = time.monotonic()
    record: dict[str, Any] = {
        "case": case.name,
        "op": case.op,
        "sizes": dict(case.sizes),
        "floor_bytes": None,
        "rows": [],
    }
    torch.manual_seed(0)
    try:
        prepared = ops_cases.prepare(case, device)
        record["floor_bytes"] = prepared.floor
        for name, call in prepared.calls.items():
            if not timed and name not in prepared.ours:
                continue  # a check is of ours
            record["rows"].append(_run_row(prepared, name, call, device, toy, timed))
        for name, why in prepared.skipped.items():
            record["rows"].append(_row(name, False, "skipped", why))
    except ops_cases.NotHere as why:
        record["rows"].append(_row("all", False, "skipped", str(why)))
    except torch.OutOfMemoryError:
        record["rows"].append(_row("all", False, "skipped", "out of memory"))
    except Exception as error:  # a case that fails must not take the others along
        record["rows"].append(_row("all", True, "failed", f"{type(error).__name__}: {error}"[:500]))
    _compare(record["rows"])
    record["seconds"] = round(time.monotonic() - began, 2)
    prepared = None
    gc.collect()
    return record


def _row(name: str, ours: bool, status: str, note: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "ours": ours,
        "status": status,
        "note": note,
        "eager": None,
        "graph": None,
    }


def _run_row(
    prepared: ops_cases.Prepared,
    name: str,
    call: Callable[[], Any],
    device: torch.device,
    toy: bool,
    timed: bool,
) -> dict[str, Any]:
    row = _row(name, name in prepared.ours, "checked")
    try:
        difference = ops_cases.agree(prepared.outputs[name](), prepared.wanted)
        if difference is not None:
            row.update(status="wrong", note=f"differs from plain by up to {difference:.3g}")
            return row
        if timed:
            row["status"] = "timed"
            limits = {"seconds": 0.02 if toy else 0.5, "repeats": 5 if toy else 20}
            prepared.reset()
            row["eager"] = measure(call, device, drained=True, **limits).as_json()
            if device.type == "cuda":
                prepared.reset()
                row["graph"], row["note"] = _graph(call, device, limits)
        prepared.reset()
    except torch.OutOfMemoryError:
        row.update(status="skipped", note="out of memory")
        torch.cuda.empty_cache()
    except Exception as error:  # one that fails must not take the others along
        row.update(status="failed", note=f"{type(error).__name__}: {error}"[:500])
    return row


def _graph(
    call: Callable[[], Any], device: torch.device, limits: dict[str, Any]
) -> tuple[dict[str, Any] | None, str | None]:
    """The call replayed from a CUDA graph, or why it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return measure(graph.replay, device, **limits).as_json(), None
    except Exception as error:
        torch.cuda.synchronize()
        return None, f"not captured: {type(error).__name__}: {error}"[:300]


def _compare(rows: list[dict[str, Any]]) -> None:
    """Give every timed row its speed against the best peer, of its own kind of call."""
    for kind in ("eager", "graph"):
        peers = [row[kind]["median"] for row in rows if not row["ours"] and row[kind]]
        for row in rows:
            if row[kind] and peers:
                row[kind]["times_best_peer"] = min(peers) / row[kind]["median"]


def _save(document: dict[str, Any], folders: list[Path]) -> None:
    """Both files, in every folder; never half a file."""
    texts = {"ops.json": json.dumps(document, indent=1) + "\n", "ops.md": table(document)}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            temporary = folder / f".{name}"
            temporary.write_text(text)
            temporary.replace(folder / name)


# ---- the table -----------------------------------------------------------------------------------


def table(document: dict[str, Any]) -> str:
    """The document as Markdown, an op at a time."""
    facts, bandwidth = document["environment"], document["copy_bandwidth"]
    toy = document["kind"]["toy"]
    versions = ", ".join(f"{n} {v}" for n, v in facts["versions"].items() if v)
    lines = [
        f"# Ops on {facts['device']}",
        "",
        f"{versions}; {facts['threads']} threads; commit {facts['commit']}; {facts['date']}.",
        *([f"A copy moves {bandwidth / 1e9:.0f} GB/s."] if bandwidth else []),
        *(["**A rehearsal at toy sizes: the figures mean nothing.**"] if toy else []),
        "Median (quartiles) in microseconds per call; GB/s of the floor; *x peer*: how many times",
        "as fast as the best peer, by eager calls and by graph replay. Ours in bold.",
    ]
    for op in dict.fromkeys(case["op"] for case in document["cases"]):
        lines += [
            "",
            f"## {op}",
            "",
            "| case | implementation | eager | graph | floor | GB/s | of copy | x peer | note |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for case in document["cases"]:
            if case["op"] == op:
                lines += [_line(case, row, bandwidth) for row in case["rows"]]
    if document["not_reached"]:
        lines += ["", "## Not reached", "", *(f"- {name}" for name in document["not_reached"])]
    return "\n".join(lines) + "\n"


def _line(case: dict[str, Any], row: dict[str, Any], bandwidth: float | None) -> str:
    samples = [row[kind] for kind in ("eager", "graph") if row[kind]]
    speed = share = ratio = ""
    if samples and case["floor_bytes"]:
        rate = case["floor_bytes"] / min(sample["median"] for sample in samples)
        speed, share = f"{rate / 1e9:.1f}", f"{rate / bandwidth:.0%}" if bandwidth else ""
        ratio = " / ".join(f"{s['times_best_peer']:.2f}" for s in samples if "times_best_peer" in s)
    sizes = " ".join(f"{axis}={size}" for axis, size in case["sizes"].items())
    floor = f"{case['floor_bytes'] / 1e6:.2f} MB" if case["floor_bytes"] else ""
    name = f"**{row['name']}**" if row["ours"] else row["name"]
    note = row["note"] or ""
    if row["status"] not in ("timed", "checked"):
        note = f"{row['status']}: {note}"
    cells = [sizes, name, _time(row["eager"]), _time(row["graph"]), floor, speed, share, ratio]
    return "| " + " | ".join([*cells, note.replace("|", "/").replace("\n", " ")]) + " |"


def _time(sample: dict[str, Any] | None) -> str:
    if sample is None:
        return ""
    low, median, high = (sample[name] * 1e6 for name in ("low", "median", "high"))
    return f"{median:.1f} ({low:.1f}-{high:.1f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"cpu or cuda (here: {default})")
    parser.add_argument("--seconds", type=float, default=600, help="begin no case after them (600)")
    parser.add_argument("--op", help="one op only")
    parser.add_argument("--toy", action="store_true", help="a rehearsal at toy sizes")
    parser.add_argument("--check", action="store_true", help="compare outputs, measure nothing")
    parser.add_argument("--results", default=RESULTS, help="results go to RESULTS/<device>")
    out = os.environ.get("OUT")
    parser.add_argument("--out", default=out, help="a further folder for them (default: $OUT)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
