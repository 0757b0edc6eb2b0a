"""Options from a YAML file, under those of the command line."""

from pathlib import Path
from typing import Any

import click
import typer

RENAMED = {"methods": "method", "judge_rewards": "judge_reward"}  # a list has a plural in YAML
NOT_IN_FILES = {"config", "as_json"}


def given(context: typer.Context, file: Path | None) -> dict[str, Any]:
    """The command's options: those of the command line, over the file's, over the defaults.

    Raises:
        EvaluationError: the file cannot be read, or holds what is not an option.
    """
    values = dict(context.params)
    if file is None:
        return values
    from args_fast.errors import EvaluationError

    options = {option.name: option for option in context.command.params}
    for name in NOT_IN_FILES:
        options.pop(name, None)
    for written, value in _read(file).items():
        name = str(written).replace("-", "_")
        option = options.get(RENAMED.get(name, name))
        if option is None or option.name is None:
            raise EvaluationError(
                f"{file} has {name!r}; its options are {', '.join(sorted(map(str, options)))}"
            )
        wanted = _unfit(option, value)
        if wanted is not None:
            raise EvaluationError(f"{name} in {file} is {value!r}; it must be {wanted}")
        source = context.get_parameter_source(option.name)
        if source is None or source.name != "COMMANDLINE":
            values[option.name] = value
    return values


def _unfit(option: Any, value: Any) -> str | None:
    """What the option wants in place of the value; None where the value is of its kind."""
    if value is None:
        return None
    if option.multiple:
        return None if isinstance(value, (list, dict)) else "a list"
    kind = option.type
    if isinstance(kind, click.types.BoolParamType):
        return None if isinstance(value, bool) else "true or false"
    whole = isinstance(kind, click.types.IntParamType)
    if whole or isinstance(kind, click.types.FloatParamType):
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return "a whole number" if whole else "a number"
        low = getattr(kind, "min", None)
        return f"at least {low:g}" if low is not None and value < low else None
    return None


def _read(file: Path) -> dict[Any, Any]:
    from args_fast.errors import EvaluationError
    from args_fast.eval.intervals import require

    require("yaml")
    import yaml

    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EvaluationError(f"cannot read {file}: {error}") from error
    if not isinstance(read, dict):
        raise EvaluationError(f"{file} must hold options, such as 'limit: 100'")
    return read
