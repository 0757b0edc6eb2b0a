"""``args-fast bench``: how many times slower than greedy decoding, measured on this machine."""

import time
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from args_fast.cli.console import errors_in_a_line, fail, note, quiet_transformers

if TYPE_CHECKING:
    from args_fast.bench.cases import Case

EXAMPLES = """
[bold]Examples[/]

args-fast bench  [dim]# a small pair, a minute[/]

args-fast bench --lm opt-2.7b --rm opt-350m --k 10 --prompt 1900

args-fast bench --set headline --budget 540  [dim]# again, until nothing is left[/]

args-fast bench report  [dim]# all results as one page with plots[/]
"""
REPORT_EXAMPLES = """
[bold]Example[/]

args-fast bench report && less bench/REPORT.md
"""


class Set(str, Enum):
    smoke = "smoke"
    cpu = "cpu"
    headline = "headline"
    batch = "batch"
    k = "k"
    prompts = "prompts"
    models = "models"
    all = "all"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


CASES, RUNNING = "Cases", "Running"
Results = Annotated[
    Path | None,
    typer.Option(
        help="Where results are kept: bench/results in a checkout, else ./bench-results.",
        metavar="FOLDER",
        rich_help_panel=RUNNING,
    ),
]

app = typer.Typer(
    help="Measure the slowdown against greedy decoding, beside every baseline.",
    epilog=EXAMPLES,
    invoke_without_command=True,
    rich_markup_mode="rich",
)


@app.callback()
def bench(
    context: typer.Context,
    which: Annotated[
        Set | None,
        typer.Option("--set", help="Which cases.", rich_help_panel=CASES),
    ] = None,
    lm: Annotated[
        str | None,
        typer.Option(
            help="Language model, such as opt-2.7b, llama-7b or qwen3-8b; random weights.",
            metavar="NAME",
            rich_help_panel=CASES,
        ),
    ] = None,
    rm: Annotated[
        str | None,
        typer.Option(help="Reward model, likewise.", metavar="NAME", rich_help_panel=CASES),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            min=2, max=128, help="Candidates per step.", metavar="N", rich_help_panel=CASES
        ),
    ] = None,
    prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a prompt.", metavar="N", rich_help_panel=CASES),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Prompts at once.", metavar="N", rich_help_panel=CASES),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="float32, bfloat16 or float16.",
            metavar="NAME",
            show_choices=False,
            rich_help_panel=CASES,
        ),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="New tokens per prompt.", metavar="N", rich_help_panel=CASES),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this method; may be repeated.", metavar="NAME", rich_help_panel=CASES
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto (CUDA where there is one), cpu, cuda or cuda:N.",
            metavar="NAME",
            rich_help_panel=RUNNING,
        ),
    ] = "auto",
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Begin no case that is likely to end later than this many seconds from now.",
            metavar="SECONDS",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Measure also what this commit has measured on this device.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Tiny models in place of the true ones; the report leaves the results out.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    results: Results = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(
            envvar="OUT",
            help="A second folder that every result is copied to.",
            metavar="FOLDER",
            rich_help_panel=RUNNING,
        ),
    ] = None,
) -> None:
    """Measure ARGS, greedy decoding and the baselines, in one process, and keep the results.

    Without options a small pair is measured. A set's cases change where --lm, --k and the like are
    given. What is finished is kept after every case, and the same command goes on where it stopped.
    """
    if context.invoked_subcommand is not None:
        return
    with errors_in_a_line():
        _find_bench()
        began = time.perf_counter()
        given = {
            "lm": lm,
            "rm": rm,
            "k": k,
            "prompt": prompt,
            "batch": batch,
            "dtype": dtype and dtype.value,
            "new_tokens": new_tokens,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        quiet_transformers()
        from args_fast.bench import results as kept
        from args_fast.bench.runner import DeviceLostError, run
        from args_fast.bench.timing import environment
        from args_fast.models.loading import resolve_device

        at = resolve_device(device)
        cases = _cases(which and which.value, changes, at.type, tuple(method or ()), dry_run)
        folder, in_checkout = kept.default_folder()
        if results is None and not in_checkout:
            note(
                f"outside a checkout, so the results go to {folder}; --results names another place"
            )
        file = kept.open_results(
            results or folder, environment(at), dry_run=dry_run, copy_to=copy_to
        )
        note(f"{file.environment['device']} -> {file.path}")
        if budget is not None:
            budget -= time.perf_counter() - began
        try:
            skipped = run(cases, file, at, again=again, budget=budget, tell=note)
        except DeviceLostError as error:
            fail(str(error))
        if skipped:
            note(f"{len(skipped)} of {len(cases)} cases are left: run the same command again")
        print(file.path)


@app.command(epilog=REPORT_EXAMPLES)
def report(
    results: Results = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page; plots go into a folder beside it. REPORT.md beside the results.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Turn all results into one page with plots, measured and computed figures kept apart."""
    with errors_in_a_line():
        _find_bench()
        if find_spec("matplotlib") is None:
            fail("the plots need matplotlib: pip install 'args-fast[bench]'")
        quiet_transformers()
        from args_fast.bench.report import write_report
        from args_fast.bench.results import default_folder

        folder = results or default_folder()[0]
        print(write_report(folder, output or folder.parent / "REPORT.md"))


def _find_bench() -> None:
    if find_spec("args_fast.bench") is None:
        fail("the benchmarks are not installed; install the package with pip, or with make install")


def _cases(
    name: str | None, changes: dict, device: str, methods: tuple[str, ...], dry_run: bool
) -> "list[Case]":
    """What is to be measured: a set, or one case, with the changes applied."""
    from dataclasses import replace

    from args_fast.bench import baselines, cases, models

    for model in ("lm", "rm"):
        if changes.get(model, "opt-125m") not in models.CONFIGS:
            fail(f"there is no model {changes[model]!r} to measure: {', '.join(models.CONFIGS)}")
    for method in methods:
        if method not in baselines.METHODS:
            fail(f"there is no method {method!r}: {', '.join(map(repr, baselines.METHODS))}")
    if name is None and changes:
        dtype = "float32" if device == "cpu" else "bfloat16"
        table = [cases.Case("opt-125m", "opt-125m", dtype=dtype)]
    else:
        table = cases.chosen(name or "smoke")
    if dry_run:
        table = [cases.tiny(case) for case in table]
    changed = [replace(case, **changes) for case in table]
    return cases.once(cases.on_device(case, device, methods or None) for case in changed)
