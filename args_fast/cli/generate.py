"""``args-fast generate``: decode one prompt."""

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from args_fast.cli import options
from args_fast.cli.compare import compare, table
from args_fast.cli.console import (
    errors_in_a_line,
    needs_stdout,
    note,
    notes,
    read_prompt,
    results,
)
from args_fast.cli.models import Models, with_models
from args_fast.cli.pair import as_prompt, load_pair

if TYPE_CHECKING:
    from args_fast import ArgsDecoder, DecodingConfig, Token
    from args_fast.prompts import Prompt

EXAMPLE = 'args-fast generate --chat "How do I teach my spaniel to sit?"'
EXAMPLES = f"""
[bold]Examples[/]

[dim]# the embedded pair, greedy decoding and ARGS side by side[/]

{EXAMPLE} --compare-greedy

[dim]# ARGS-stochastic, on a prompt from a file[/]

args-fast generate --chat --temperature 0.7 --seed 1 < prompt.txt

[dim]# your own models, a text that is not wrapped in a template, for a machine to read[/]

args-fast generate "Once upon a time" --lm org/lm --rm org/rm --w 2 --json | jq -r .text
"""
ENDINGS = {"eos": "an end token", "stop": "--stop", "length": "--max-new-tokens"}


@with_models
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt; standard input if absent or '-'.", metavar="PROMPT"),
    ] = None,
    k: options.K = 10,
    w: options.W = 1.5,
    temperature: options.Temperature = None,
    seed: options.Seed = 0,
    max_new_tokens: options.MaxNewTokens = 128,
    stop: options.Stop = None,
    eos: options.Eos = None,
    chat: options.Chat = False,
    compare_greedy: Annotated[
        bool,
        typer.Option(
            "--compare-greedy",
            help="Show greedy decoding and ARGS side by side, with their rewards.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="One JSON object on standard output: text, ids, scores, time, versions.",
        ),
    ] = False,
    *,
    models: Models,
) -> None:
    """Decode one prompt with a language model guided by a reward model.

    The text streams to standard output; everything else goes to standard error.
    """
    with errors_in_a_line():
        needs_stdout()
        text = read_prompt(prompt, EXAMPLE)
        from args_fast import DecodingConfig

        config = DecodingConfig(
            k=k,
            w=w,
            temperature=temperature,
            seed=seed,
            max_new_tokens=max_new_tokens,
            stop=stop or (),
            eos_token_ids=eos or None,
        )
        asked = as_prompt(text, chat=chat)
        decoder, names = load_pair(models)
        about = {"prompt": text, "models": names} | _where(decoder)
        if compare_greedy:
            with notes.status("[dim]decoding[/]"):
                both = compare(decoder, asked, config)
            if as_json:
                _print_json(about | both)
            else:
                results.print(table(text, both, config))
                note("reward: of the whole text. diversity: unique of all 2-, 3- and 4-grams.")
                note("tokens/s: one decode each, prompt included, after a short one to warm up.")
        elif as_json:
            with notes.status("[dim]decoding[/]"):
                record = _decode(decoder, asked, config)
            _print_json(about | record)
        else:
            _stream(decoder, asked, config)


def _where(decoder: "ArgsDecoder") -> dict[str, Any]:
    import torch
    import transformers

    from args_fast import __version__

    return {
        "device": str(decoder.device),
        "dtype": str(decoder.language_model.dtype).removeprefix("torch."),
        "versions": {
            "args-fast": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, allow_nan=False))


def _decode(decoder: "ArgsDecoder", prompt: "Prompt", config: "DecodingConfig") -> dict[str, Any]:
    began = time.perf_counter()
    (result,) = decoder.generate(prompt, config)
    seconds = time.perf_counter() - began
    return {
        "config": asdict(config),
        **result.as_json(),
        "seconds": seconds,
        "tokens_per_second": len(result.token_ids) / seconds,
    }


def _stream(decoder: "ArgsDecoder", prompt: "Prompt", config: "DecodingConfig") -> None:
    began = time.perf_counter()
    tokens: list[Token] = []
    for token in decoder.stream(prompt, config):
        sys.stdout.write(token.text or "")
        sys.stdout.flush()
        tokens.append(token)
    seconds = time.perf_counter() - began
    print(flush=True)
    summary = [
        f"{len(tokens)} tokens in {seconds:.1f} s, {len(tokens) / seconds:.0f} per second",
        f"ended by {ENDINGS[tokens[-1].finish_reason or 'length']}",
    ]
    if config.consults_reward:
        mean = sum(token.reward for token in tokens) / len(tokens)
        summary.insert(1, f"reward {tokens[-1].reward:+.2f}, mean {mean:+.2f}")
    note(" · ".join(summary))
