"""``args-fast doctor``: what this machine has, which op runs on what, and what is missing."""

import json
import os
import platform
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from args_fast import __version__, tiny_pair
from args_fast.cli.console import errors_in_a_line, plain, results
from args_fast.machine import processor, versions

EXAMPLES = """
[bold]Examples[/]

args-fast doctor

ARGS_FAST_BACKEND=torch args-fast doctor  [dim]# what a forced backend changes[/]
"""
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "flash-attn")
# The modules of args_fast.ops that are built, or compiled when they are used.
NATIVE = {"cpp": "C++ ops", "cuda": "CUDA ops", "triton": "Triton ops"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Versions, devices, which op runs on what, and what is missing.

    Each op of a decode step has several implementations; the table of ops names, for each kind of
    device, those that work on this machine, with the one that runs in front.
    """
    with errors_in_a_line():
        facts = examine()
        if as_json:
            print(json.dumps(facts))
        else:
            _show(facts)


def examine() -> dict[str, Any]:
    """All that doctor knows, as plain JSON values."""
    import torch

    from args_fast.models import flash
    from args_fast.ops import backends

    return {
        "versions": {"args-fast": __version__, "python": platform.python_version()}
        | versions(PACKAGES)
        | {"torch": torch.__version__},  # its own says for which CUDA it is
        "devices": _devices(),
        "ops": {
            device: {
                op: {"backends": list(report), "chosen": _chosen(op, device)}
                for op, report in table.items()
            }
            for device, table in backends.TABLE.items()
        },
        "flash_attn": flash.status(),
        "forced_backend": os.environ.get(backends.ENVIRONMENT) or None,
        "embedded_pair": _has_embedded_pair(),
        "missing": _missing(),
    }


def _devices() -> list[dict[str, Any]]:
    import torch

    report: list[dict[str, Any]] = [
        {"device": "cpu", "name": processor(), "threads": torch.get_num_threads()}
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        report.append(
            {
                "device": f"cuda:{i}",
                "name": gpu.name,
                "capability": f"{gpu.major}.{gpu.minor}",
                "memory_gib": round(gpu.total_memory / 2**30, 1),
            }
        )
    return report


def _chosen(op: str, device: str) -> str | None:
    """The backend that would run; None where a forced one does not have the op."""
    from args_fast.errors import BackendError
    from args_fast.ops import backends

    try:
        runs = backends.implementation(op, device)
    except BackendError:
        return None
    return next(name for name, report in backends.TABLE[device][op].items() if report is runs)


def _has_embedded_pair() -> bool:
    return all((path / "model.safetensors").is_file() for path in (tiny_pair.LM, tiny_pair.RM))


def _missing() -> dict[str, str]:
    """What is not here -> why, and how to get it."""
    import torch

    from args_fast.models import flash

    missing = {}
    for module, name in NATIVE.items():
        if find_spec(f"args_fast.ops.{module}") is None:
            continue
        status = import_module(f"args_fast.ops.{module}").status()
        if status != "built":
            missing[name] = status
    if torch.version.cuda is None:
        missing["CUDA"] = f"torch {torch.__version__} is a CPU build; decoding runs on the CPU"
    elif not torch.cuda.is_available():
        missing["CUDA"] = "torch sees no device (driver? CUDA_VISIBLE_DEVICES?); the CPU is used"
    if flash.status() != "used":
        missing["flash-attn"] = flash.status()
    if not _has_embedded_pair():
        missing["embedded pair"] = "reinstall args-fast, or run examples/tiny_pair/train.py"
    return missing


def _show(facts: dict[str, Any]) -> None:
    _section("Versions", ((name, has or "-") for name, has in facts["versions"].items()))
    _section("Devices", ((entry["device"], _describe(entry)) for entry in facts["devices"]))

    forced = facts["forced_backend"]
    rule = f"ARGS_FAST_BACKEND={forced} is set" if forced else "the first one runs"
    results.print(Text.assemble(("Ops", "bold"), ("  " + rule, "dim")))
    present = {entry["device"].split(":")[0] for entry in facts["devices"]}
    results.print(_ops(facts["ops"], present, forced))
    results.print()

    used = facts["flash_attn"] == "used"
    prompts = "flash-attn on CUDA in 16 bits, else torch's" if used else "torch's"
    _section("Prompts", [("attention", prompts)])
    pair = str(tiny_pair.LM.parent) if facts["embedded_pair"] else "not there"
    _section("Models", [("embedded pair", pair)])
    if facts["missing"]:
        _section("Missing", facts["missing"].items())


def _section(title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=16)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    results.print(plain(title, "bold"))
    results.print(table)
    results.print()


def _describe(device: dict[str, Any]) -> str:
    if device["device"] == "cpu":
        threads = device["threads"]
        return f"{device['name']}, {threads} thread{'' if threads == 1 else 's'}"
    return f"{device['name']}, capability {device['capability']}, {device['memory_gib']} GiB"


def _ops(ops: dict[str, Any], present: set[str], forced: str | None) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(style="dim", min_width=16)
    for device in ops:
        table.add_column(device if device in present else f"{device} (no device)")
    for op in ops["cpu"]:
        table.add_row(op, *(_cell(ops[d][op], forced, d in present) for d in ops))
    return table


def _cell(entry: dict[str, Any], forced: str | None, present: bool) -> Text:
    """The chosen backend in green, then the others; in red where the forced one is missing."""
    chosen, backends = entry["chosen"], entry["backends"]
    if chosen is None:
        return plain(f"no {forced}, only {', '.join(backends)}", "red" if present else "dim")
    others = "".join(f", {name}" for name in backends if name != chosen)
    return Text.assemble((chosen, "green" if present else "dim"), (others, "dim"))
