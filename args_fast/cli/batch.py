"""``args-fast batch``: decode a file of prompts, whatever happens on the way."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from args_fast.cli import options, rewards
from args_fast.cli.console import errors_in_a_line, fail, needs_stdout, note, notes
from args_fast.cli.models import Models, with_models
from args_fast.cli.pair import find_pair, load_pair
from args_fast.jobs.layouts import FORMATS, LAYOUTS, Reading

if TYPE_CHECKING:
    from args_fast import DecodingConfig
    from args_fast.jobs.job import Job, Tally
    from args_fast.jobs.records import Finished

EXAMPLES = """
[bold]Examples[/]

[dim]# one prompt a line; "id" is copied, any option may be set for one line[/]

echo '{"id": "a", "prompt": "How do I teach my spaniel to sit?"}' > in.jsonl

echo '{"id": "b", "prompt": "Suggest a short walk.", "w": 3, "stop": ["."]}' >> in.jsonl

args-fast batch in.jsonl out.jsonl --chat --max-new-tokens 64

[dim]# killed? the same command resumes where it was[/]

args-fast batch in.jsonl out.jsonl --chat --max-new-tokens 64

[dim]# what went wrong, line by line; and once it is put right, these lines again[/]

jq -c 'select(.error)' out.jsonl

args-fast batch in.jsonl out.jsonl --chat --max-new-tokens 64 --retry-errors

[dim]# data sets as they are: the format is found out, other keys are copied[/]

args-fast batch hh-rlhf.jsonl.gz out.jsonl --keep

args-fast batch questions.csv out.jsonl --prompt-field question --chat

[dim]# on all GPUs of this machine, or of a Ray cluster[/]

args-fast batch in.jsonl out.jsonl --ray --lm org/lm --rm org/rm --config config.json
"""
JOB = "Job"
PIPE = "-"
Format = Enum("Format", {name: name for name in FORMATS}, type=str)  # type: ignore[misc]
AUTO = Format("auto")


@with_models
def batch(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help='JSON lines, such as {"prompt": "...", "id": ..., "k": 5} or {"messages": [...]}, '
            'or another format (see --format); also compressed by gzip. "-" for standard input.',
            metavar="IN",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(
            help='One record per line of the input, with its number; "-" for standard output.',
            metavar="OUT",
            show_default=False,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of decoding options. They are overridden by options given here, and "
            "these by those of a line.",
            metavar="FILE",
            rich_help_panel=options.DECODING,
        ),
    ] = None,
    k: options.K = 10,
    w: options.W = 1.5,
    temperature: options.Temperature = None,
    seed: options.Seed = 0,
    max_new_tokens: options.MaxNewTokens = 128,
    stop: options.Stop = None,
    eos_token_ids: options.Eos = None,
    chat: options.Chat = False,
    layout: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Layout of the input: "
            + "; ".join(f"{name} ({layout.about})" for name, layout in LAYOUTS.items())
            + "; jsonl (lines of ours); csv; text (a prompt a line). auto finds out which.",
            metavar="NAME",
            show_choices=False,
            rich_help_panel=JOB,
        ),
    ] = AUTO,
    prompt_field: Annotated[
        str,
        typer.Option(
            help="The key, or the column of a CSV file, that holds the prompt.",
            metavar="KEY",
            rich_help_panel=JOB,
        ),
    ] = Reading.prompt_field,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help='Copy the other keys of a line into its record, as "input".',
            rich_help_panel=JOB,
        ),
    ] = False,
    unordered: Annotated[
        bool,
        typer.Option(
            "--unordered",
            help="Write each record as soon as it is there, not in the order of the input.",
            rich_help_panel=JOB,
        ),
    ] = False,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Write logprob, reward and score of every token. Their last digits depend on "
            "which prompts were decoded together.",
            rich_help_panel=JOB,
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Throw away what OUT holds, and start over.", rich_help_panel=JOB
        ),
    ] = False,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors",
            help="Decode again the lines whose record is an error; the new records replace them.",
            rich_help_panel=JOB,
        ),
    ] = False,
    use_ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Run on Ray Data: one actor per GPU, on this machine or on the cluster that "
            "RAY_ADDRESS names. Needs: pip install 'args-fast\\[ray]'",
            rich_help_panel=JOB,
        ),
    ] = False,
    actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --ray: how many pairs of models. Without it one per GPU, or one where "
            "there is none.",
            metavar="N",
            rich_help_panel=JOB,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="At the end, the sums as one JSON object on standard output."),
    ] = False,
    *,
    models: Models,
) -> None:
    """Decode a file of prompts: any length, in constant memory, and nothing is lost.

    Each record is in the file at once (in order: once those before it are). Killed and started
    again with the same options, the job resumes where it was. A line that cannot be decoded becomes
    an error record, and the job continues.

    Exit code: 0 where all went well, 1 where there are error records, 2 where the job could not
    run.
    """
    with errors_in_a_line():
        if as_json or output == PIPE:
            needs_stdout()
        if as_json and output == PIPE:
            fail("--json and OUT - both want standard output; name a file for OUT")
        if actors is not None and not use_ray:
            fail("--actors is for --ray; without it there is one pair of models")
        if models.options["rm_device"] is not None and use_ray:
            fail("--rm-device is not for --ray, whose actors have one GPU each")
        from args_fast.jobs.job import Settings, decode_lines, opened
        from args_fast.jobs.run import WINDOW

        defaults = _defaults(context, config)
        names = find_pair(models.lm, models.rm)
        device, dtype = models.options["device"], models.options["dtype"]
        if use_ray:
            from args_fast import ray

            kind = ray.start(device)
        else:
            from args_fast.models.loading import resolve_device

            kind = resolve_device(device).type
        settings = Settings(
            lm=rewards.absolute(names["lm"]),
            rm=rewards.lasting(names["rm"], rewards.absolute),
            dtype="float32" if (dtype, kind) == ("auto", "cpu") else dtype,
            defaults=defaults,
            reading=Reading(layout.value, prompt_field, chat, keep),
            ordered=not unordered,
            scores=scores,
            logits_processor=models.options["logits_processor"],
        )
        records: Iterable[Finished]
        with opened(source, output, settings, restart=restart, retry_errors=retry_errors) as job:
            _report(job, output, source)
            if job.remaining == 0:
                records = ()
            elif use_ray:
                if models.lm is None:
                    note("no --lm/--rm given: using the embedded tiny pair (a demonstration)")
                records = ray.decode(
                    job, ray.Pair(settings.lm, settings.rm, models.options), actors
                )
            else:
                pair, _ = load_pair(models)
                window = max(WINDOW, 4 * models.options["max_batch_size"])
                records = decode_lines(pair, job.lines(), job.settings, window)
            tally, seconds = _run(job, records, output)
            summary = _summary(job, tally, seconds)
        if as_json:
            print(json.dumps(summary, allow_nan=False))
        _sum_up(summary, output)
        if summary["errors"]:
            raise typer.Exit(1)


def _defaults(context: typer.Context, config: Path | None) -> "DecodingConfig":
    """The file's options, and over them those that were given on the command line."""
    from args_fast import DecodingConfig
    from args_fast.jobs.lines import OPTIONS, configured, load_config

    chosen = load_config(config) if config else {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name in OPTIONS and source is not None and source.name == "COMMANDLINE":
            chosen[name] = value
    return configured(DecodingConfig(), chosen)


def _report(job: "Job", output: str, source: str) -> None:
    """What the job is, before it begins."""
    done = len(job.output.done)
    if job.settings.reading.format != "jsonl":
        note(f"{source} is read as {job.settings.reading.format}")
    if job.cut:
        note(f"a torn last line of {job.cut} bytes was cut off {output}")
    if job.input is None:
        return
    if job.input.lines == 0:
        note(f"{source} holds no prompts: there is nothing to do")
    elif job.remaining == 0:
        note(f"all {done} lines have their record in {output}: there is nothing to do")
    elif done:
        note(f"resuming: {done} of {job.input.lines} lines are done")


def _run(job: "Job", records: "Iterable[Finished]", output: str) -> tuple["Tally", float]:
    """Write the records that are missing, and show how far it is."""
    from args_fast.jobs.job import Tally

    tally = Tally()
    before = len(job.output.done)
    began = time.perf_counter()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    shown = notes.is_terminal and output != PIPE
    try:
        with Progress(*columns, console=notes, disable=not shown) as bar:
            total = None if job.input is None else job.input.lines
            task = bar.add_task("", total=total, completed=before, speed="")
            for tally in job.write(records):
                if shown:
                    seconds = time.perf_counter() - began
                    speed = _speed(tally.tokens, seconds, tally.mean_reward)
                    bar.update(task, completed=before + tally.written, speed=speed)
    except KeyboardInterrupt:
        if job.resumable:
            note(f"{before + tally.written} records are in {output}; the same command resumes")
        raise
    return tally, time.perf_counter() - began


def _speed(tokens: int, seconds: float, mean_reward: float | None) -> str:
    speed = f"{tokens / seconds:,.0f} tokens/s"
    return speed if mean_reward is None else f"{speed}, mean reward {mean_reward:+.2f}"


def _summary(job: "Job", tally: "Tally", seconds: float) -> dict[str, Any]:
    return {
        "records": len(job.output.done),
        "errors": job.output.errors,
        "new": {"records": tally.written, "errors": tally.errors, "tokens": tally.tokens},
        "seconds": seconds,
        "tokens_per_second": tally.tokens / seconds,
        "mean_reward": tally.mean_reward,
        "settings": asdict(job.settings),
    }


def _sum_up(summary: dict[str, Any], output: str) -> None:
    new, errors = summary["new"], summary["errors"]
    if new["records"]:
        speed = _speed(new["tokens"], summary["seconds"], summary["mean_reward"])
        note(
            f"{new['records']} records in {summary['seconds']:.1f} s · {new['tokens']} tokens, "
            f"{speed}"
        )
    if errors:
        note(
            f"{errors} of {summary['records']} are error records"
            + (
                ""
                if output == PIPE
                else f"; see them with: jq -c 'select(.error)' {output}, and "
                "decode those lines again with --retry-errors"
            )
        )
