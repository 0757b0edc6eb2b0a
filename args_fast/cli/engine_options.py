"""The engine's options on a command line: names, defaults and help from ``EngineOptions``."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from args_fast.cli.options import MODELS
from args_fast.options import EngineOptions, doc_of

# What a field's type is on a command line.
TYPES: dict[Any, Any] = {
    int: int,
    int | None: int | None,
    float: float,
    bool: bool,
    bool | str: bool,
}
ALIASES = {"max_batch_size": ("--max-batch-size",)}  # as batch calls it


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator: the command gets an option for every field of ``EngineOptions`` that has a flag,
    and their values as the keyword argument ``engine``."""
    options = [f for f in fields(EngineOptions) if f.metadata["flag"] is not None]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = {
        f.name: inspect.Parameter(f.name, keyword, default=f.default, annotation=_annotated(f))
        for f in options
    }

    @functools.wraps(command)
    def run(**values: Any) -> None:
        engine = {name: values.pop(name) for name in added}
        command(engine=engine, **values)

    signature = inspect.signature(command)
    own = [p for name, p in signature.parameters.items() if name != "engine"]
    parameters = [p.replace(kind=keyword) for p in own] + list(added.values())
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _annotated(option: Field) -> Any:
    kind = TYPES[option.type]
    flag = option.metadata["flag"]
    names = (f"{flag}/--no-{flag[2:]}",) if option.default is True else (flag,)
    metavar = None if kind is bool else "X" if kind is float else "N"
    declared = typer.Option(
        *ALIASES.get(option.name, ()),
        *names,
        help=doc_of(option),
        metavar=metavar,
        rich_help_panel=MODELS,
    )
    return Annotated[kind, declared]
