"""``args-fast tune``: which w to try with a pair of models."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from args_fast.cli import evaluation, option_file, options
from args_fast.cli.console import errors_in_a_line, note, notes, results
from args_fast.cli.models import Models, with_models

EXAMPLES = """
[bold]Examples[/]

args-fast tune  [dim]# the embedded pair, under a minute[/]

args-fast tune --lm org/lm --rm org/rm --data hh --limit 10 --plot runs/w

args-fast tune --lm org/lm --rm org/rm --data chat:prompts.jsonl --k 20 --json | jq .start.w
"""
EMBEDDED_LIMIT = 8


@with_models
def tune(
    context: typer.Context,
    k: options.K = 10,
    max_new_tokens: options.MaxNewTokens = 48,
    data: evaluation.Data = None,
    split: evaluation.Split = None,
    chat: evaluation.Chat = None,
    limit: evaluation.Limit = EMBEDDED_LIMIT,
    max_prompt_tokens: evaluation.MaxPromptTokens = 2048,
    config: evaluation.Config = None,
    seed: evaluation.Seed = 0,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw the curve, as FILE.png and FILE.svg.", metavar="FILE"),
    ] = None,
    as_json: evaluation.AsJson = False,
    *,
    models: Models,
) -> None:
    """Suggest a range of w from a handful of prompts.

    Rewards come at any scale. Along the greedy texts, all candidates of every step are judged; that
    reports which steps a w would change, what it would gain and what it would cost in likelihood.
    """
    with errors_in_a_line():
        values = option_file.entries(context, tune, config) | {"stop": None}
        opened = evaluation.opened(values)
        from args_fast.eval.plan import Pairs
        from args_fast.eval.prompts import draw
        from args_fast.eval.tune import steps_of, suggest

        if plot is not None:
            from args_fast.eval.intervals import require

            require("matplotlib")
        settings = opened.settings
        pairs = Pairs(opened.open_pair)
        items, skipped = draw(settings, pairs)
        if skipped:
            note(f"{skipped} prompts are longer than --max-prompt-tokens and are left out")
        decoder = pairs.get(settings.lm, settings.rm)
        with notes.status("[dim]judging candidates[/]"):
            steps, failed = steps_of(
                decoder,
                [item.prompt for item in items],
                k=values["k"],
                max_new_tokens=settings.max_new_tokens,
            )
        if failed:
            note(f"{failed} of {len(items)} prompts could not be decoded and are left out")
        suggestion = {"prompts": len(items) - failed, "k": values["k"], **suggest(steps)}
        if as_json:
            print(json.dumps(suggestion, allow_nan=False))
        else:
            _show(suggestion, values)
        if plot is not None and suggestion["curve"]:
            from args_fast.eval.plots import prices

            prices(suggestion["curve"], _range(suggestion), plot)
            note(f"the curve is in {plot}.png and {plot}.svg")


def _range(suggestion: dict[str, Any]) -> list[dict[str, float]]:
    return [suggestion[name] for name in ("low", "start", "high") if suggestion[name] is not None]


def _show(suggestion: dict[str, Any], values: dict[str, Any]) -> None:
    print(f"{suggestion['steps']} steps of {suggestion['prompts']} prompts, k = {suggestion['k']}")
    logprob_spread = suggestion["logprob_spread"]
    print(f"  spread of log-probabilities over a step's candidates  {logprob_spread:.3g}")
    print(
        f"  spread of rewards                                     {suggestion['reward_spread']:.3g}"
    )
    if not suggestion["curve"]:
        print("No step has a candidate with a higher reward than its likeliest token's: no w > 0")
        print("changes anything on these prompts.")
        return
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("", "w", "steps changed", "gain", "perplexity"):
        shown.add_column(title, justify="left" if not title else "right")
    for name in ("low", "start", "high"):
        point = suggestion[name]
        if point is not None:
            shown.add_row(name, f"{point['w']:.3g}", *_cells(point))
    results.print(shown)
    note("steps changed: another token than the likeliest is chosen. gain: of the reward that the")
    note("best candidates would bring. perplexity: times that of greedy decoding. One step at a")
    note("time along the greedy texts, so a first guess: measure it.")
    range_ = _range(suggestion)
    if not range_:
        note("no w costs so much that a range can be told: the reward agrees with the likeliest")
        return
    note("  " + _sweep([point["w"] for point in range_], values))


def _cells(point: dict[str, float]) -> list[str]:
    return [f"{point['changed']:.0%}", f"{point['gain']:.0%}", f"x {point['price']:.2f}"]


def _sweep(range_: list[float], values: dict[str, Any]) -> str:
    """The command that measures what the suggestion is worth."""
    command = ["args-fast", "sweep"]
    for name in ("lm", "rm", "data"):
        value = values[name]
        for each in value if isinstance(value, (list, tuple)) else [value]:
            command += [] if each is None else [f"--{name}", str(each)]
    weights = ",".join(f"{w:.2g}" for w in [*range_, 4 * range_[-1]])
    return shlex.join([*command, "--w", weights, "--k", str(values["k"])])
