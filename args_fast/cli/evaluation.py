"""What the commands of an evaluation share: their options, and what they make of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from args_fast.cli import rewards
from args_fast.cli.console import note
from args_fast.cli.models import Models
from args_fast.cli.pair import find_pair, load_pair

if TYPE_CHECKING:
    from args_fast.eval.methods import Method
    from args_fast.eval.plan import OpenPair, Plan, Settings

DATA, MEASURES, RUN = "Data", "Measures", "Run"
EMBEDDED_LIMIT = 40  # of the embedded prompts, where no limit is given

Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with these options, names as here (max_new_tokens, methods, ...). "
        "Options given on the command line override it.",
        metavar="FILE",
        rich_help_panel=RUN,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Prompts: hh, shp, alpaca_eval (published sets), or KIND:FILE of the same fields; "
        "also chat:FILE.jsonl (messages) and text:FILE.txt (a prompt a line). Without it, prompts "
        "of the embedded pair.",
        metavar="KIND[:FILE]",
        rich_help_panel=DATA,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(help="Split of a data set from the hub.", metavar="NAME", rich_help_panel=DATA),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Make conversations of texts, or texts of one-turn conversations; without it, each "
        "kind stays as it is. Texts are never wrapped in a chat template, conversations always.",
        rich_help_panel=DATA,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1, help="Prompts, drawn by the seed; without it all.", metavar="N", rich_help_panel=DATA
    ),
]
MaxPromptTokens = Annotated[
    int,
    typer.Option(
        min=1, help="Longer prompts are left out, and counted.", metavar="N", rich_help_panel=DATA
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Of the draw of prompts, of methods that draw, and of the intervals.",
        metavar="N",
        rich_help_panel=RUN,
    ),
]
JudgeReward = Annotated[
    list[str] | None,
    typer.Option(
        help="A reward that does not guide: a model, or FILE.py:FUNCTION or MODULE:FUNCTION of "
        "(prompts, responses); NAME=... sets its name. May be repeated.",
        metavar="[NAME=]REWARD",
        rich_help_panel=MEASURES,
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Sentence encoder for coherence, such as the paper's "
        "princeton-nlp/sup-simcse-bert-base-uncased with --pooling pooler. Without it, coherence "
        "is left out.",
        metavar="MODEL",
        rich_help_panel=MEASURES,
    ),
]
Pooling = Annotated[
    str,
    typer.Option(
        help="Of the encoder: auto (sentence-transformers where installed, else mean), mean, cls "
        "or pooler.",
        metavar="NAME",
        rich_help_panel=MEASURES,
    ),
]
TimingPrompts = Annotated[
    int,
    typer.Option(
        min=0,
        help="Prompts that each method is timed on, one at a time; 0 leaves times out.",
        metavar="N",
        rich_help_panel=MEASURES,
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Discard the run in the folder, and start again.", rich_help_panel=RUN
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Results as one JSON object on standard output.")
]


@dataclass(frozen=True)
class Opened:
    """The settings of a run, and what loads its models."""

    settings: "Settings"
    open_pair: "OpenPair"


def opened(values: Mapping[str, Any]) -> Opened:
    """The settings that options ask for. The embedded pair and its prompts stand in, said so."""
    from args_fast.eval.plan import Settings
    from args_fast.models.loading import resolve_device
    from args_fast.tiny_pair import HELDOUT

    models = Models.take(values)
    names = find_pair(models.lm, models.rm)
    if models.lm is None:
        note("no --lm/--rm given: using the embedded tiny pair (a demonstration)")
    data, limit = values["data"], values["limit"]
    if data is None:
        limit = EMBEDDED_LIMIT if limit is None else limit
        data = f"hh:{HELDOUT}"
        note(f"no --data given: using up to {limit} of the embedded pair's held-out prompts")
    dtype = models.options["dtype"]
    if dtype == "auto" and resolve_device(models.options["device"]).type == "cpu":
        dtype = "float32"
    settings = Settings(
        lm=rewards.absolute(names["lm"]),
        rm=rewards.lasting(names["rm"], rewards.absolute),
        dtype=dtype,
        data=data,
        split=values["split"],
        chat=values["chat"],
        limit=limit,
        seed=values["seed"],
        max_new_tokens=values["max_new_tokens"],
        max_prompt_tokens=values["max_prompt_tokens"],
        stop=tuple(values["stop"] or ()),
        logits_processor=models.options["logits_processor"],
    )

    def open_pair(lm: str, rm: str) -> Any:
        return load_pair(Models(lm, rm, models.options | {"dtype": dtype}))[0]

    return Opened(settings, open_pair)


def plan(values: Mapping[str, Any], settings: "Settings", methods: "list[Method]") -> "Plan":
    """What a run compares and measures, from its options."""
    from args_fast.eval import judges
    from args_fast.eval.plan import Plan

    judged = values["judge_reward"] or []
    if isinstance(judged, dict):  # as YAML may have it
        judged = [f"{name}={source}" for name, source in judged.items()]
    return Plan(
        settings,
        methods=tuple(methods),
        judges=tuple(judges.parse(written) for written in judged),
        encoder=values["encoder"],
        pooling=values["pooling"],
        timing_prompts=values["timing_prompts"],
    )
