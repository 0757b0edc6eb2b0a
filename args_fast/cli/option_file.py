"""Options from a YAML file, under those of the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

RENAMED = {"methods": "method", "judge_rewards": "judge_reward"}  # a list has a plural in YAML


def given(context: typer.Context, file: Path | None) -> dict[str, Any]:
    """The command's options: those of the command line, over the file's, over the defaults.

    Raises:
        EvaluationError: the file cannot be read, or holds what is not an option.
    """
    values = dict(context.params)
    if file is None:
        return values
    plural = {name: None for name, option in RENAMED.items() if option in values}
    for name, value in _read_yaml(file, {**values, **plural}).items():
        name = RENAMED.get(name, name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            values[name] = value
    return values


def _read_yaml(file: Path, known: Mapping[str, Any]) -> dict[str, Any]:
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
    values = {str(name).replace("-", "_"): value for name, value in read.items()}
    for name, value in values.items():
        if name not in known or name in ("config", "as_json"):
            allowed = ", ".join(sorted(set(known) - {"config", "as_json"}))
            raise EvaluationError(f"{file} has {name!r}; its options are {allowed}")
        default = known[name]
        if isinstance(default, int) and not isinstance(value, type(default)):
            raise EvaluationError(f"{name} in {file} is {value!r}; it must be such as {default!r}")
    return values
