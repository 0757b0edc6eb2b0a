"""``args-fast sweep``: ARGS over a grid of w and k, with pictures."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from args_fast.cli import evaluation, option_file, options, parts
from args_fast.cli.console import errors_in_a_line, fail, note, plain, results
from args_fast.cli.models import Models, with_models

EXAMPLES = """
[bold]Examples[/]

args-fast sweep  [dim]# the embedded pair: w = 0 to 2, k = 10 and 40, some minutes[/]

args-fast sweep --w 0.5,1,1.5,2,4 --k 10 --limit 20 --out runs/sweep

args-fast sweep --lm org/lm --rm org/rm --data hh --limit 300 --w 0.5,1,1.5,2 --k 10,40

args-fast sweep --config examples/eval/figure2.yaml
"""


@with_models
def sweep(
    context: typer.Context,
    w: Annotated[
        str,
        typer.Option(
            help="Weights of the reward, separated by commas; 0 is the greedy decode that all "
            "share.",
            metavar="X,X,...",
            rich_help_panel=options.DECODING,
        ),
    ] = "0.5,1,1.5,2",
    k: Annotated[
        str,
        typer.Option(
            help="Candidates per step, separated by commas; 2 to 128 each.",
            metavar="N,N,...",
            rich_help_panel=options.DECODING,
        ),
    ] = "10,40",
    temperature: options.Temperature = None,
    max_new_tokens: options.MaxNewTokens = 128,
    stop: options.Stop = None,
    data: evaluation.Data = None,
    split: evaluation.Split = None,
    chat: evaluation.Chat = None,
    limit: evaluation.Limit = None,
    max_prompt_tokens: evaluation.MaxPromptTokens = 2048,
    judge_reward: evaluation.JudgeReward = None,
    encoder: evaluation.Encoder = None,
    pooling: evaluation.Pooling = "auto",
    timing_prompts: evaluation.TimingPrompts = 3,
    out: Annotated[
        Path,
        typer.Option(
            help="Where samples, numbers and pictures are kept; an unfinished sweep there is "
            "resumed, and a wider one decodes what is new.",
            metavar="FOLDER",
            rich_help_panel=evaluation.RUN,
        ),
    ] = Path("sweep-results"),
    config: evaluation.Config = None,
    seed: evaluation.Seed = 0,
    restart: evaluation.Restart = False,
    as_json: evaluation.AsJson = False,
    *,
    models: Models,
) -> None:
    """Reward, diversity, coherence, perplexity and time over w and k, as numbers and pictures.

    Writes sweep.csv, sweep.json, and figure2, front and slowdown as PNG and SVG.
    """
    with errors_in_a_line():
        from args_fast.eval.intervals import require
        from args_fast.eval.records import write_json
        from args_fast.eval.run import clear, evaluate
        from args_fast.eval.sweep import comma_separated, grid, points

        require("scipy", "matplotlib")
        values = option_file.entries(context, sweep, config)
        opened = evaluation.opened(values)
        methods = grid(
            _numbers(values["w"], float, "w"),
            _numbers(values["k"], int, "k"),
            values["temperature"],
        )
        plan = evaluation.plan(values, opened.settings, methods)
        folder = Path(values["out"])
        if values["restart"]:
            clear(folder)
        with parts.progress() as report:
            outcome = points(evaluate(plan, folder, opened.open_pair, report))
        write_json(folder / "sweep.json", outcome)
        (folder / "sweep.csv").write_text(comma_separated(outcome), encoding="utf-8")
        drawn = _draw(outcome, folder)
        if as_json:
            print(json.dumps(outcome, allow_nan=False))
        else:
            _show(outcome)
        note(f"{folder}/ holds sweep.csv, sweep.json, results.json, {', '.join(drawn)}")


def _numbers(written: Any, kind: type, name: str) -> list[Any]:
    """Numbers from "1,2", or as YAML has them: one, or a list."""
    parts = written.split(",") if isinstance(written, str) else written
    try:
        return [kind(part) for part in (parts if isinstance(parts, list) else [parts])]
    except (TypeError, ValueError):
        fail(f"{name} is {written!r}; it must be numbers separated by commas, such as 10,40")


def _draw(outcome: list[dict[str, Any]], folder: Path) -> list[str]:
    from args_fast.eval import plots

    files = plots.figure2(outcome, folder) + plots.front(outcome, folder)
    if any(point["slowdown"] for point in outcome):
        files += plots.slowdown(outcome, folder)
    return [file.name for file in files]


def _show(outcome: list[dict[str, Any]]) -> None:
    names = [
        name for name in outcome[0] if name not in ("k", "w") and any(p[name] for p in outcome)
    ]
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("k", "w", *names):
        shown.add_column(plain(title.removeprefix("judge:")), justify="right")
    for point in outcome:
        cells = ("-" if point[n] is None else _cell(point[n]) for n in names)
        shown.add_row(str(point["k"]), f"{point['w']:g}", *map(plain, cells))
    results.print(shown)
    note("w = 0 is greedy decoding, the same for every k. In brackets: 95% intervals over prompts.")


def _cell(value: dict[str, float | None]) -> str:
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f}\n[{value['low']:.2f}, {value['high']:.2f}]"
