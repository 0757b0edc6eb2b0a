"""``args-fast bench``: how many times slower than greedy decoding, measured on this machine."""

import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from args_fast.cli import models as model_options
from args_fast.cli.console import errors_in_a_line, fail, note, notes, quiet_transformers
from args_fast.cli.pair import load_pair

if TYPE_CHECKING:
    from args_fast import ArgsDecoder
    from args_fast.bench.cases import Case

EXAMPLES = """
[bold]Examples[/]

args-fast bench  [dim]# OPT-125M guided by OPT-125M, random weights: about a minute[/]

args-fast bench --lm org/lm --rm org/rm  [dim]# your own pair[/]

args-fast bench --lm opt-1.3b --rm opt-350m --dtype bfloat16  [dim]# shapes, random weights[/]
"""
CASE, RUNNING = "What is measured", "Running"
SHAPE = "opt-125m"  # large enough that a step is more than overhead, small enough for any machine


def bench(
    lm: Annotated[
        str | None,
        typer.Option(
            help="Language model: a folder, a hub id, or a shape such as opt-1.3b for random "
            "weights at its true size.",
            metavar="MODEL",
            rich_help_panel=model_options.MODELS,
        ),
    ] = None,
    rm: Annotated[
        str | None,
        typer.Option(
            help="Reward model, likewise. Without --lm and --rm, opt-125m is guided by opt-125m.",
            metavar="MODEL",
            rich_help_panel=model_options.MODELS,
        ),
    ] = None,
    device: model_options.Device = "auto",
    dtype: model_options.DtypeName = model_options.Dtype.auto,
    trust_remote_code: model_options.TrustRemoteCode = False,
    k: Annotated[
        int,
        typer.Option(min=2, max=128, help="Candidates per step.", rich_help_panel=CASE),
    ] = 10,
    prompt: Annotated[
        int, typer.Option(min=1, help="Tokens of the prompt.", rich_help_panel=CASE)
    ] = 512,
    batch: Annotated[
        int, typer.Option(min=1, help="Prompts decoded together.", rich_help_panel=CASE)
    ] = 1,
    new_tokens: Annotated[
        int, typer.Option(min=2, help="New tokens per prompt.", rich_help_panel=CASE)
    ] = 32,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="A further method; may be repeated. A wrong name lists them all.",
            metavar="NAME",
            rich_help_panel=CASE,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Turns of every method.", rich_help_panel=RUNNING)
    ] = 5,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object on standard output.", rich_help_panel=RUNNING),
    ] = False,
) -> None:
    """Measure ARGS against greedy decoding: transformers' and our own, in one process.

    The first line of the output is the slowdown: the time of a decode step of ARGS over that of
    greedy decoding, the prompt's time in neither.
    """
    with errors_in_a_line():
        if find_spec("args_fast.bench") is None:
            fail("the benchmarks are not installed; install the package with pip or make install")
        with notes.status("[dim]loading the models[/]"):
            from args_fast.bench import cases, slowdown, timing

            quiet_transformers()
            case = cases.Case(
                lm or SHAPE, rm or SHAPE, k, prompt=prompt, batch=batch, new_tokens=new_tokens
            )
            case = replace(case, methods=_methods(case.methods, also, own=lm is not None))
            decoder = _pair(case, lm, rm, device, dtype.value, trust_remote_code)
        case = replace(case, dtype=str(decoder.language_model.dtype).removeprefix("torch."))
        bandwidth = timing.read_bandwidth(decoder.device)
        with notes.status("") as status:
            methods = slowdown.measure_case(
                decoder, case, rounds=rounds, report=lambda line: status.update(f"[dim]{line}[/]")
            )
        errors = slowdown.failures(methods)
        if len(errors) == len(methods):
            fail(errors[-1])
        facts = timing.environment(decoder.device)
        if as_json:
            document = {"environment": facts, "case": asdict(case), "methods": methods}
            print(json.dumps(document | {"read_bytes_per_second": bandwidth}))
            return
        print(slowdown.headline(methods))
        print(f"{case.name}; {timing.describe(facts)}\n")
        print(*slowdown.shown(methods, bandwidth), sep="\n")
        note(slowdown.DEFINITION)


def _methods(usual: tuple[str, ...], also: list[str] | None, *, own: bool) -> tuple[str, ...]:
    """The usual three, what is asked for on top, and the published way of caching where nothing is
    given: what the slowdown would be without this package."""
    from args_fast.bench import baselines

    for name in also or ():
        if name not in baselines.METHODS:
            fail(f"{name!r} is not a method; choose from: {'; '.join(baselines.METHODS)}")
    further = (also or []) if own else [*(also or []), baselines.K_COPIES]
    return tuple(dict.fromkeys([*usual, *further]))


def _pair(
    case: "Case", lm: str | None, rm: str | None, device: str, dtype: str, trust_remote_code: bool
) -> "ArgsDecoder":
    """The pair that is measured: models of one's own, or shapes with random weights."""
    from args_fast.bench import models

    names = [name for name in (lm, rm) if name is not None]
    shapes = [name in models.CONFIGS and not Path(name).is_dir() for name in names]
    if not any(shapes) and names:
        loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        decoder, _ = load_pair(model_options.Models(lm, rm, loading))
        return decoder
    if not all(shapes):
        fail(
            f"--lm {lm} and --rm {rm} are a shape and a model; give two models, or two of the "
            f"shapes {', '.join(models.CONFIGS)}"
        )
    from args_fast.bench.sweep import build
    from args_fast.models.loading import resolve_device, resolve_dtype

    place = resolve_device(device)
    resolved = resolve_dtype(dtype, place)
    type_name = "bfloat16" if resolved == "auto" else str(resolved).removeprefix("torch.")
    return build(replace(case, dtype=type_name), place)
