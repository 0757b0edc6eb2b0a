"""``args-fast eval``: methods on prompts, measured, as a table with intervals."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from args_fast.cli import evaluation, option_file, options, parts
from args_fast.cli.console import errors_in_a_line, note, plain, results
from args_fast.cli.models import Models, with_models

EXAMPLES = """
[bold]Examples[/]

args-fast eval  [dim]# the embedded pair: greedy, ARGS-greedy, ARGS-stochastic, two minutes[/]

args-fast eval --method greedy --method top-k --method args-greedy:w=1,k=10 --limit 20

args-fast eval --lm org/lm --rm org/rm --data hh --limit 300 --judge-reward org/other-rm

[dim]# everything from a file; killed? the same command resumes[/]

args-fast eval --config examples/eval/table3.yaml
"""
DEFAULT_METHODS = ("greedy", "args-greedy", "args-stochastic")


@with_models
def eval_(
    context: typer.Context,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="greedy, top-k, nucleus, contrastive, best-of-n, args-greedy, args-stochastic or "
            "policy:path=MODEL, with options such as args-greedy:w=1.5,k=10,name=ARGS. May be "
            "repeated. Without it: greedy, args-greedy and args-stochastic.",
            metavar="KIND[:OPTION=VALUE,...]",
            rich_help_panel=options.DECODING,
        ),
    ] = None,
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
            help="Where samples, scores and results are kept; an unfinished run there is resumed.",
            metavar="FOLDER",
            rich_help_panel=evaluation.RUN,
        ),
    ] = Path("eval-results"),
    config: evaluation.Config = None,
    seed: evaluation.Seed = 0,
    restart: evaluation.Restart = False,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write the responses for alpaca_eval or rewardbench. May be repeated.",
            metavar="FORMAT",
            rich_help_panel=evaluation.RUN,
        ),
    ] = None,
    as_json: evaluation.AsJson = False,
    *,
    models: Models,
) -> None:
    """Compare ways to decode: rewards, diversity, coherence, perplexity, length and time.

    Writes samples.jsonl, results.json and the table as table.md, table.csv and table.html. A method
    or a judge that is added later costs only itself.
    """
    with errors_in_a_line():
        from args_fast.eval import methods
        from args_fast.eval.exports import export as export_responses
        from args_fast.eval.run import clear, evaluate

        values = option_file.entries(context, eval_, config)
        exports = _formats(values["export"])
        opened = evaluation.opened(values)
        requested = values["method"] or DEFAULT_METHODS
        plan = evaluation.plan(values, opened.settings, [methods.parse(one) for one in requested])
        folder = Path(values["out"])
        if values["restart"]:
            clear(folder)
        with parts.progress() as report:
            outcome = evaluate(plan, folder, opened.open_pair, report)
        written = write_tables(outcome, folder)
        for form in exports:
            written += [
                str(file.relative_to(folder)) for file in export_responses(plan, folder, form)
            ]
        if as_json:
            print(json.dumps(outcome, allow_nan=False, ensure_ascii=False))
        else:
            show(outcome)
        note(f"{folder}/ holds samples.jsonl, results.json, {', '.join(written)}")


def _formats(requested: list[str] | None) -> list[str]:
    from args_fast.errors import EvaluationError
    from args_fast.eval.exports import FORMATS

    for form in requested or []:
        if form not in FORMATS:
            raise EvaluationError(f"export is {form!r}; it must be one of {', '.join(FORMATS)}")
    return list(requested or [])


def write_tables(outcome: dict[str, Any], folder: Path) -> list[str]:
    """Write the results as Markdown, CSV and HTML; returns the files' names."""
    from args_fast.eval import table

    forms = {"md": table.markdown, "csv": table.comma_separated, "html": table.page}
    for ending, form in forms.items():
        (folder / f"table.{ending}").write_text(form(outcome), encoding="utf-8")
    return [f"table.{ending}" for ending in forms]


def show(outcome: dict[str, Any]) -> None:
    """The table on standard output, a column for each method; notes on standard error."""
    from rich import box
    from rich.table import Table

    from args_fast.eval.table import cells, notes

    titles, rows = cells(outcome)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column(style="dim")
    for row in rows:
        shown.add_column(plain(row[0][0]), justify="right")
    for place, title in enumerate(titles[1:], start=1):
        shown.add_row(plain(title), *(plain("\n".join(filter(None, row[place]))) for row in rows))
    results.print(shown)
    for line in notes(outcome):
        note(line)
