"""The options that name the models and say how their engine runs: the same in every subcommand.

Those of the engine come from ``EngineOptions``: names, defaults, help.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from enum import Enum
from typing import Annotated, Any, Literal

import typer

from args_fast.cli import rewards
from args_fast.options import EngineOptions, doc_of

MODELS, ENGINE = "Models", "Engine"

# What a field's type is on a command line.
TYPES: dict[Any, Any] = {
    int: int,
    int | None: int | None,
    float: float,
    bool: bool,
    bool | str: bool,
    bool | Literal["auto"]: bool | None,
    str | object | None: str | None,  # a name or a path; no model
}
METAVARS: dict[Any, str | None] = {
    bool: None,
    bool | None: None,
    float: "X",
    str | None: "NAME",
}


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Processors(str, Enum):
    model = "model"


Lm = Annotated[
    str | None,
    typer.Option(
        help="Language model: a folder or hub id.", metavar="MODEL", rich_help_panel=MODELS
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (CUDA where there is one), cpu, cuda or cuda:N.",
        metavar="NAME",
        rich_help_panel=MODELS,
    ),
]
RmDevice = Annotated[
    str | None,
    typer.Option(
        "--rm-device",
        help="Another GPU for the reward model, cuda:N; without it both models share --device.",
        metavar="NAME",
        rich_help_panel=MODELS,
    ),
]
DtypeName = Annotated[
    Dtype,
    typer.Option(
        help="auto (as saved; on the CPU float32), float32, bfloat16 or float16.",
        metavar="NAME",
        show_choices=False,
        rich_help_panel=MODELS,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the models.",
        rich_help_panel=MODELS,
    ),
]
LogitsProcessors = Annotated[
    Processors | None,
    typer.Option(
        "--logits-processor",
        help="model: obey what the language model's generation_config asks of logits, such as a "
        "repetition penalty, one step at a time. Without it such rules are named and ignored.",
        metavar="NAME",
        show_choices=False,
        rich_help_panel=MODELS,
    ),
]


@dataclass(frozen=True)
class Models:
    """The models that a command line names.

    Attributes:
        lm: the language model; None for that of the embedded pair.
        rm: the rewards, as ``cli.rewards`` writes them; None likewise.
        options: further arguments of ``ArgsDecoder.from_pretrained``.
    """

    lm: str | None
    rm: str | None
    options: dict[str, Any]

    @classmethod
    def take(cls, values: Mapping[str, Any]) -> "Models":
        """The models among the values of a command's options."""
        names = ("device", "rm_device", "dtype", "trust_remote_code", "logits_processor")
        options = {name: _plain(values[name]) for name in names}
        rm = rewards.written(values)
        asked = {f.name: value for f in FLAGS if (value := values[f.name]) is not None}
        return cls(values["lm"], rm, options | asked)


FLAGS = [f for f in fields(EngineOptions) if f.metadata["flag"] is not None]


def with_models(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator: the command gets the options of models and engine, and what they say as its
    keyword argument ``models``."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=default, annotation=hint)
        for name, (hint, default) in _options().items()
    ]
    signature = inspect.signature(command)
    own = [p for name, p in signature.parameters.items() if name != "models"]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        models = Models.take(values)
        command(models=models, **{p.name: values[p.name] for p in own})

    parameters = [p.replace(kind=keyword) for p in own] + added
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _options() -> dict[str, tuple[Any, Any]]:
    """Each option's annotation and default."""
    return {
        "lm": (Lm, None),
        **{name: (hint, None) for name, hint in rewards.OPTIONS.items()},
        "device": (Device, "auto"),
        "rm_device": (RmDevice, None),
        "dtype": (DtypeName, Dtype.auto),
        "trust_remote_code": (TrustRemoteCode, False),
        "logits_processor": (LogitsProcessors, None),
        **{f.name: (_annotated(f), None if f.default == "auto" else f.default) for f in FLAGS},
    }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _annotated(option: Field) -> Any:
    kind = TYPES[option.type]
    flag = option.metadata["flag"]
    names = (f"{flag}/--no-{flag[2:]}",) if option.default in (True, "auto") else (flag,)
    metavar = METAVARS.get(kind, "N")
    declared = typer.Option(
        *names,
        help=doc_of(option),
        metavar=metavar,
        rich_help_panel=ENGINE,
    )
    return Annotated[kind, declared]
