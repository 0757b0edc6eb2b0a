"""The options of ``args-fast serve`` that no other subcommand has."""

from pathlib import Path
from typing import Annotated

import typer

SERVER, SCALE = "Server", "Scale-out"

Host = Annotated[
    str,
    typer.Option(
        help="Address to listen at; 0.0.0.0 is every network.",
        metavar="ADDRESS",
        rich_help_panel=SERVER,
    ),
]

Port = Annotated[
    int,
    typer.Option(min=0, max=65535, help="0 is any free one.", metavar="N", rich_help_panel=SERVER),
]

ServedModelName = Annotated[
    list[str] | None,
    typer.Option(
        help="Name that requests may ask for; may be repeated. Default: the folder's name, or "
        "the hub id, of the language model.",
        metavar="NAME",
        rich_help_panel=SERVER,
    ),
]

ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Key that clients have to send; may be repeated. Other users of the machine can "
        "read a command line: prefer the environment or a file.",
        envvar="ARGS_FAST_API_KEYS",
        show_envvar=True,
        metavar="KEY",
        rich_help_panel=SERVER,
    ),
]

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="One key per line.", metavar="FILE", rich_help_panel=SERVER),
]

MaxModelLen = Annotated[
    int | None,
    typer.Option(
        help="Tokens of a prompt with its answer. Default: what models and cache take.",
        metavar="N",
        rich_help_panel=SERVER,
    ),
]

MaxWaiting = Annotated[
    int,
    typer.Option(
        min=0,
        help="Answers that may wait for their turn; requests beyond get a 429.",
        metavar="N",
        rich_help_panel=SERVER,
    ),
]

MaxBody = Annotated[
    int,
    typer.Option(min=1024, help="Bytes of a request's body.", metavar="N", rich_help_panel=SERVER),
]

LimitN = Annotated[
    int,
    typer.Option(min=1, help="Answers per prompt (n).", metavar="N", rich_help_panel=SERVER),
]

DrainSeconds = Annotated[
    float,
    typer.Option(
        min=0,
        help="Time for requests under way to finish after SIGTERM.",
        metavar="S",
        rich_help_panel=SERVER,
    ),
]

LogPrompts = Annotated[
    bool,
    typer.Option(
        "--log-prompts",
        help="Write prompts into the log; without it no text of a user is.",
        rich_help_panel=SERVER,
    ),
]

Ray = Annotated[
    bool,
    typer.Option("--ray", help="Deploy on Ray Serve, in replicas.", rich_help_panel=SCALE),
]

Replicas = Annotated[
    str,
    typer.Option(
        help="With --ray: how many, or MIN:MAX to follow the load.",
        metavar="N|MIN:MAX",
        rich_help_panel=SCALE,
    ),
]

Cpus = Annotated[
    float,
    typer.Option(
        min=0,
        help="With --ray: processors of one replica; on GPUs each has one GPU as well.",
        metavar="X",
        rich_help_panel=SCALE,
    ),
]
