"""Options from a YAML file, under those of the command line."""

from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import typer

RENAMED = {"methods": "method", "judge_rewards": "judge_reward"}  # a list has a plural in YAML
NOT_IN_FILES = {"context", "config", "as_json", "return"}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


def entries(
    context: typer.Context, command: Callable[..., None], file: Path | None
) -> dict[str, Any]:
    """A command's options: those of the command line, over the file's, over the defaults.

    Args:
        context: of the command.
        command: its function, whose annotations say what an option may be.
        file: the YAML file; None for none.

    Raises:
        EvaluationError: the file cannot be read, or holds what is not an option.
    """
    values = dict(context.params)
    if file is None:
        return values
    from args_fast.errors import EvaluationError

    hints = {k: v for k, v in get_type_hints(command).items() if k not in NOT_IN_FILES}
    for written, value in _read(file).items():
        name = str(written).replace("-", "_")
        option = RENAMED.get(name, name)
        if option not in hints:
            raise EvaluationError(
                f"{file} has {name!r}; its options are {', '.join(sorted(hints))}"
            )
        if option == "rm":
            value = _repeated(value)
        expected = _unfit(hints[option], value)
        if expected is not None:
            raise EvaluationError(f"{name} in {file} is {value!r}; it must be {expected}")
        source = context.get_parameter_source(option)
        if source is None or source.name != "COMMANDLINE":
            values[option] = value
    return values


def _repeated(value: Any) -> Any:
    """The values of an option that may be repeated, of one or of several by name."""
    if isinstance(value, dict):
        return [f"{name}={one}" for name, one in value.items()]
    return [value] if isinstance(value, str) else value


def _unfit(hint: Any, value: Any) -> str | None:
    """What an option wants in place of the value; None where the value is of its kind."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    kind = get_origin(kinds[0]) or kinds[0]
    if value is None or kind not in NAMES:
        return None
    fitting = {float: (int, float), list: (list, dict)}.get(kind, kind)
    if isinstance(value, fitting) and (kind is bool or not isinstance(value, bool)):
        return None
    return NAMES[kind]


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
