"""The command line: one file per subcommand, put together here.

torch and transformers are imported inside the commands, so that ``--help`` answers at once.
"""

from typing import Annotated

import typer

from args_fast import __version__
from args_fast.cli import (
    batch,
    bench,
    chat,
    convert,
    doctor,
    explain,
    generate,
    judge,
    serve,
    sweep,
    tune,
)
from args_fast.cli import eval as evaluate
from args_fast.machine import wait_passively

wait_passively()  # before a command imports torch

app = typer.Typer(
    name="args-fast",
    help="Exact reward-guided decoding (ARGS) at close to the speed of greedy decoding.",
    epilog=f"Try it, nothing is downloaded:  {generate.EXAMPLE}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"args-fast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=batch.EXAMPLES)(batch.batch)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.eval_)
app.command(epilog=sweep.EXAMPLES)(sweep.sweep)
app.command(epilog=tune.EXAMPLES)(tune.tune)
app.command(epilog=judge.EXAMPLES)(judge.judge)
app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(epilog=bench.EXAMPLES)(bench.bench)
