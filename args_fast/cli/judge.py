"""``args-fast judge``: which of two methods a language model prefers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from args_fast.cli import evaluation, parts
from args_fast.cli.console import errors_in_a_line, fail, note, plain, results

if TYPE_CHECKING:
    from args_fast.eval.judge import Pair

EXAMPLES = """
[bold]Examples[/]

[dim]# on a run of args-fast eval: its first ARGS method against greedy decoding[/]

OPENAI_API_KEY=... args-fast judge eval-results --endpoint https://HOST/v1 --model NAME

args-fast judge runs/hh --method args-greedy:w=1 --other top-k --limit 300 --both-orders ...

[dim]# what would be asked, and how often; nothing is sent[/]

args-fast judge eval-results --dry-run

[dim]# without a run: greedy decoding and ARGS of the embedded pair, judged by a local server[/]

args-fast judge --endpoint http://localhost:8000/v1 --model NAME --limit 20
"""
JUDGE = "Judge"
EMBEDDED_LIMIT = 20


def judge(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a run of args-fast eval. Without it, the embedded pair decodes some "
            "prompts into judge-results.",
            metavar="RUN",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="The method that is judged, or a beginning of its name; without it the run's "
            "first of ARGS.",
            metavar="METHOD",
        ),
    ] = None,
    compared_method: Annotated[
        str | None,
        typer.Option(
            "--other",
            help="The method that it is compared with; without it greedy.",
            metavar="METHOD",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Base URL of an OpenAI-compatible server, such as https://HOST/v1.",
            metavar="URL",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The judge, as the server names it.", rich_help_panel=JUDGE),
    ] = None,
    key_env: Annotated[
        str,
        typer.Option(
            help="Environment variable that holds the key; unset means that none is sent.",
            metavar="NAME",
            rich_help_panel=JUDGE,
        ),
    ] = "OPENAI_API_KEY",
    both_orders: Annotated[
        bool,
        typer.Option(
            "--both-orders",
            help="Ask for each pair in both orders, and report how often they agree; without it "
            "the order is drawn by the seed.",
            rich_help_panel=JUDGE,
        ),
    ] = False,
    per_minute: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Requests per minute at most.", metavar="N", rich_help_panel=JUDGE
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(min=1, max=64, help="Requests at once.", metavar="N", rich_help_panel=JUDGE),
    ] = 4,
    tries: Annotated[
        int,
        typer.Option(
            min=1,
            help="Tries of a request that fails, and of a reply without scores.",
            metavar="N",
            rich_help_panel=JUDGE,
        ),
    ] = 5,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds that a try may take.", rich_help_panel=JUDGE),
    ] = 60.0,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Dollars per million prompt tokens and per million completion tokens, to count "
            "the cost.",
            metavar="IN OUT",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pairs; without it all.", metavar="N")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the order of the two answers.", metavar="N")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be asked, and send nothing.")
    ] = False,
    as_json: evaluation.AsJson = False,
) -> None:
    """Score two methods' answers side by side with a language model: win, tie, lose.

    The judge reads each prompt with both answers and scores them 1 to 10 on helpfulness,
    harmlessness, relevance, accuracy and insightfulness. Killed? The same command resumes.
    """
    with errors_in_a_line():
        from args_fast.eval.intervals import require
        from args_fast.eval.pairs import pairs_of

        require("statsmodels")
        if not dry_run and (endpoint is None or model is None):
            fail(
                "name the judge: --endpoint https://HOST/v1 --model NAME; or see what it would be "
                "asked with --dry-run"
            )
        folder = _embedded_run(limit) if run is None else run
        own, compared, pairs = pairs_of(folder, method, compared_method)
        pairs = pairs[:limit]
        if dry_run:
            _preview(pairs, seed, both_orders, as_json)
            return
        from args_fast.eval.endpoint import Endpoint
        from args_fast.eval.judge import judge_run

        asked = Endpoint(
            str(endpoint),
            str(model),
            key_variable=key_env,
            per_minute=per_minute,
            tries=tries,
            timeout=timeout,
        )
        settings: dict[str, Any] = {"method": own, "other": compared, "model": model}
        settings |= {"endpoint": endpoint, "seed": seed, "both_orders": both_orders}
        with parts.progress() as report:
            verdicts, file = judge_run(
                asked,
                pairs,
                folder,
                settings,
                parse_tries=tries,
                concurrency=concurrency,
                price=price,
                report=report,
            )
        if as_json:
            print(json.dumps(verdicts, allow_nan=False))
        else:
            _show(verdicts)
        note(f"{file} holds each judgement with its reply, {file.stem}.json the sums")


def _embedded_run(limit: int | None) -> Path:
    """Greedy decoding and ARGS by the embedded pair, decoded or found in judge-results."""
    from args_fast.cli.models import Models
    from args_fast.cli.pair import load_pair
    from args_fast.eval import methods
    from args_fast.eval.plan import Plan, Settings
    from args_fast.eval.run import evaluate
    from args_fast.tiny_pair import HELDOUT, LM, RM

    folder, count = Path("judge-results"), limit or EMBEDDED_LIMIT
    note(f"no RUN given: the embedded tiny pair decodes {count} of its prompts into {folder}/")
    settings = Settings(str(LM), str(RM), "float32", f"hh:{HELDOUT}", limit=count)
    plan = Plan(settings, (methods.parse("greedy"), methods.parse("args-greedy")), timing_prompts=0)

    def open_pair(lm: str, rm: str) -> Any:
        return load_pair(Models(lm, rm, {"device": "cpu", "dtype": "float32"}))[0]

    with parts.progress() as report:
        evaluate(plan, folder, open_pair, report)
    return folder


def _preview(pairs: "list[Pair]", seed: int, both: bool, as_json: bool) -> None:
    from args_fast.eval.judge import messages, orders

    asked = list(orders(pairs, seed, both=both))
    opening = messages(*asked[0])
    # Four characters a token is what English comes to; the count that is paid is the server's.
    tokens = sum(len(turn["content"]) for one in asked for turn in messages(*one)) // 4
    if as_json:
        print(json.dumps({"requests": len(asked), "prompt_tokens": tokens, "first": opening}))
        return
    for turn in opening:
        results.print(plain(f"{turn['role']}:\n{turn['content']}\n"))
    note(f"{len(asked)} requests like this one, about {tokens:,} prompt tokens; nothing was sent")


def _show(verdicts: dict[str, Any]) -> None:
    def shares(name: str) -> str:
        value = verdicts[name]
        if value is None or value["share"] is None:
            return "-"
        return f"{value['share']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"

    print(f"{verdicts['method']} against {verdicts['other']}, judged by {verdicts['model']}:")
    for name in ("win", "tie", "lose", "win_or_tie"):
        print(f"  {name.replace('_', ' '):12}{shares(name)}")
    scores = (verdicts["mean_score"], verdicts["mean_other"])
    if None not in scores:
        print("  mean scores {:.2f} and {:.2f}".format(*scores))
    note(
        f"{verdicts['pairs']} pairs, 95% Wilson intervals; the answer that stood first won "
        f"{shares('first_preferred')} of the judgements that were not ties"
    )
    if verdicts["agreement"] is not None:
        note(f"both orders gave the same verdict for {shares('agreement')} of the pairs")
    if verdicts["failed"]:
        note(f"{verdicts['failed']} pairs have no scores; the same command asks for them again")
    spent = verdicts["spent"]
    cost = f", {spent['dollars']:.2f} dollars" if "dollars" in spent else ""
    note(
        f"spent: {spent['requests']} requests, {spent['prompt_tokens']:,} prompt tokens and "
        f"{spent['completion_tokens']:,} completion tokens{cost}"
    )
