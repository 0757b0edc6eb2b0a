"""``args-fast explain``: what guidance did, token by token, as one HTML page."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from args_fast.cli import evaluation, options
from args_fast.cli.console import errors_in_a_line, fail, note, notes, read_prompt
from args_fast.cli.models import Models, with_models
from args_fast.cli.pair import as_prompt, load_pair

EXAMPLE = 'args-fast explain --chat "How do I teach my spaniel to sit?"'
EXAMPLES = f"""
[bold]Examples[/]

{EXAMPLE}  [dim]# the embedded pair; open explain.html[/]

args-fast explain --chat "How do I teach my spaniel to sit?" --w 4 --temperature 0.7 --out one.html

args-fast explain --data text:prompts.txt --limit 3 --out pages/  [dim]# a page for each prompt[/]

args-fast explain "Hello" --lm org/lm --rm org/rm --json | jq '.decodes\\[1].steps\\[0]'
"""


@with_models
def explain(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt; standard input if absent or '-'.", metavar="PROMPT"),
    ] = None,
    k: options.K = 10,
    w: options.W = 1.5,
    temperature: options.Temperature = None,
    seed: options.Seed = 0,
    max_new_tokens: options.MaxNewTokens = 64,
    stop: options.Stop = None,
    chat: options.Chat = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare", help="Show greedy decoding next to it, or this decode alone."
        ),
    ] = True,
    data: evaluation.Data = None,
    limit: evaluation.Limit = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The page; with --data a folder, for a page for each prompt.", metavar="PATH"
        ),
    ] = Path("explain.html"),
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="The steps as JSON on standard output, an object for each prompt, too."
        ),
    ] = False,
    *,
    models: Models,
) -> None:
    """Write one page that shows every step of a decode: candidates, rewards, scores, choices.

    The page needs nothing from elsewhere: it opens from disk. Hover over a token, or use the arrow
    keys, to see its candidates.
    """
    with errors_in_a_line():
        prompts = _prompts(prompt, data, limit, seed, chat=chat)
        from args_fast import DecodingConfig
        from args_fast.eval.explain import explain as explained
        from args_fast.eval.explain import page

        config = DecodingConfig(
            k=k,
            w=w,
            temperature=temperature,
            seed=seed,
            max_new_tokens=max_new_tokens,
            stop=tuple(stop or ()),
        )
        decoder, names = load_pair(models)
        if data is not None:
            out.mkdir(parents=True, exist_ok=True)
        for number, asked in enumerate(prompts):
            with notes.status("[dim]decoding[/]"):
                found = {**explained(decoder, asked, config, compare=compare), "models": names}
            file = out if data is None else out / f"{number}.html"
            file.write_text(page(found), encoding="utf-8")
            if as_json:
                print(json.dumps(found, allow_nan=False, ensure_ascii=False))
            note(f"{file}: {_summary(found)}")


def _prompts(
    prompt: str | None, data: str | None, limit: int | None, seed: int, *, chat: bool
) -> list[Any]:
    if data is None:
        text = read_prompt(prompt, EXAMPLE)
        return [as_prompt(text, chat=chat)]
    if prompt is not None:
        fail("give a prompt or --data, not both")
    from args_fast.eval.data import load, sample

    items, _ = sample(load(data, chat=chat or None), limit, seed, lambda item: True)
    return [item.prompt for item in items]


def _summary(found: dict[str, Any]) -> str:
    parts = []
    for decode in found["decodes"]:
        steps = decode["steps"]
        changed = sum(step["chosen"] > 0 for step in steps)
        reward = steps[-1]["reward"]
        shown = "" if reward is None else f", reward {reward:+.2f}"
        parts.append(f"{decode['name']} {len(steps)} tokens, {changed} not the likeliest{shown}")
    return "; ".join(parts)
