"""``args-fast generate``: decode one prompt."""

import json
import sys
import time
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from args_fast.cli.compare import compare, table
from args_fast.cli.console import errors_in_a_line, note, notes, read_prompt, results
from args_fast.cli.pair import encode_prompt, load_pair

if TYPE_CHECKING:
    from args_fast import ArgsDecoder, DecodingConfig, Token

EXAMPLE = 'args-fast generate "How do I grow basil?"'
EXAMPLES = f"""
[bold]Examples[/]

[dim]# the embedded pair, greedy decoding and ARGS side by side[/]

{EXAMPLE} --compare-greedy

[dim]# ARGS-stochastic, on a prompt from a file[/]

args-fast generate --temperature 0.7 --seed 1 < prompt.txt

[dim]# your own models, for a machine to read[/]

args-fast generate "Hello" --lm org/lm --rm org/rm --w 2 --json | jq -r .text
"""
ENDINGS = {"eos": "its end token", "stop": "--stop", "length": "--max-new-tokens"}


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


MODELS, DECODING = "Models", "Decoding"


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt; standard input if absent or '-'.", metavar="PROMPT"),
    ] = None,
    lm: Annotated[
        str | None,
        typer.Option(
            help="Language model: a folder or hub id.", metavar="MODEL", rich_help_panel=MODELS
        ),
    ] = None,
    rm: Annotated[
        str | None,
        typer.Option(
            help="Reward model: a folder or hub id; one label, and the same tokenizer. "
            "Without --lm and --rm, a tiny pair that is part of the package is used.",
            metavar="MODEL",
            rich_help_panel=MODELS,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto (CUDA where there is one), cpu, cuda or cuda:N.",
            metavar="NAME",
            rich_help_panel=MODELS,
        ),
    ] = "auto",
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="auto (as saved; on the CPU float32), float32, bfloat16 or float16.",
            metavar="NAME",
            show_choices=False,
            rich_help_panel=MODELS,
        ),
    ] = Dtype.auto,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code that comes with the models.",
            rich_help_panel=MODELS,
        ),
    ] = False,
    k: Annotated[
        int,
        typer.Option(
            min=1,
            max=128,
            help="Candidates per step, the k most likely tokens; 1 is greedy decoding.",
            metavar="N",
            rich_help_panel=DECODING,
        ),
    ] = 10,
    w: Annotated[
        float,
        typer.Option(
            help="Weight of the reward in log p + w * r; 0 leaves the reward model out. "
            "Useful values depend on the scale of the rewards; the paper's are 0.5 to 2.",
            metavar="X",
            rich_help_panel=DECODING,
        ),
    ] = 1.5,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Above 0: draw from softmax(score / temperature) over the candidates. "
            "Without it the best candidate is taken.",
            metavar="X",
            rich_help_panel=DECODING,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of the draws; the same seed, the same text.",
            metavar="N",
            rich_help_panel=DECODING,
        ),
    ] = 0,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Upper bound on new tokens.", metavar="N", rich_help_panel=DECODING
        ),
    ] = 128,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="End at this text and cut before it; may be repeated.",
            metavar="TEXT",
            rich_help_panel=DECODING,
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Take the prompt as typed, without the tokenizer's chat template.",
            rich_help_panel=DECODING,
        ),
    ] = False,
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
) -> None:
    """Decode one prompt with a language model guided by a reward model.

    The text streams to standard output; everything else goes to standard error.
    """
    with errors_in_a_line():
        text = read_prompt(prompt, EXAMPLE)
        from args_fast import DecodingConfig

        config = DecodingConfig(
            k=k,
            w=w,
            temperature=temperature,
            seed=seed,
            max_new_tokens=max_new_tokens,
            stop=tuple(stop or ()),
        )
        decoder, models = load_pair(
            lm, rm, device=device, dtype=dtype.value, trust_remote_code=trust_remote_code
        )
        ids = encode_prompt(decoder, text, raw=raw)
        about = {"prompt": text, "models": models} | _where(decoder)
        if compare_greedy:
            with notes.status("[dim]decoding[/]"):
                both = compare(decoder, ids, config)
            if as_json:
                _print_json(about | both)
            else:
                results.print(table(text, both, config))
                note("reward: of the whole text. diversity: unique of all 2-, 3- and 4-grams.")
                note("tokens/s: one decode each, prompt included, after a short one to warm up.")
        elif as_json:
            with notes.status("[dim]decoding[/]"):
                record = _decode(decoder, ids, config)
            _print_json(about | record)
        else:
            _stream(decoder, ids, config)


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


def _decode(decoder: "ArgsDecoder", ids: list[int], config: "DecodingConfig") -> dict[str, Any]:
    began = time.perf_counter()
    (result,) = decoder.generate(ids, config)
    seconds = time.perf_counter() - began
    return {
        "config": asdict(config),
        **result.as_json(),
        "seconds": seconds,
        "tokens_per_second": len(result.token_ids) / seconds,
    }


def _stream(decoder: "ArgsDecoder", ids: list[int], config: "DecodingConfig") -> None:
    began = time.perf_counter()
    tokens: list[Token] = []
    for token in decoder.stream(ids, config):
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
