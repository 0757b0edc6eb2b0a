"""Which rewards a command line names, with their options: one text that ``from_pretrained`` reads.

A single plain reward model is its path; anything else is the JSON of rewards by name that
``args_fast.rewards.specs`` describes, so it can be written into a job's settings.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from args_fast.cli.console import fail

REWARDS = "Rewards"
TEMPLATES = ("auto", "chat", "plain", "pair")

Rm = Annotated[
    list[str] | None,
    typer.Option(
        help="Reward model: a folder or hub id; a decoder with a head, a LoRA adapter, or an "
        "encoder. May be repeated, as NAME=MODEL: several guide by their sum. Without --lm and "
        "--rm, a tiny pair that is part of the package is used.",
        metavar="\\[NAME=]MODEL",
        rich_help_panel=REWARDS,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Weight of each of several rewards, such as helpful=0.7,safe=0.3; 1 where it is not "
        "named.",
        metavar="NAME=X,...",
        rich_help_panel=REWARDS,
    ),
]
RmTemplate = Annotated[
    list[str] | None,
    typer.Option(
        "--rm-template",
        help="What a reward model reads: auto (conversations in its own chat template), chat, "
        "plain, or pair (prompt and response as two texts).",
        metavar="\\[NAME=]TEMPLATE",
        rich_help_panel=REWARDS,
    ),
]
RmClosing = Annotated[
    list[str] | None,
    typer.Option(
        "--rm-closing",
        help="Token ids that a reward model reads after every candidate, such as 128009,198.",
        metavar="\\[NAME=]IDS",
        rich_help_panel=REWARDS,
    ),
]
RmLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--rm-labels",
        help="Which of several outputs is the reward: 1, POSITIVE, or the weight of each, such as "
        "POSITIVE:1,NEGATIVE:-1.",
        metavar="\\[NAME=]LABELS",
        rich_help_panel=REWARDS,
    ),
]
RewardFunction = Annotated[
    list[str] | None,
    typer.Option(
        "--reward-function",
        help="A Python function (prompts, responses) -> rewards, as module:name. May be repeated, "
        "and stand next to --rm.",
        metavar="\\[NAME=]MODULE:NAME",
        rich_help_panel=REWARDS,
    ),
]
OPTIONS: dict[str, Any] = {
    "rm": Rm,
    "weights": Weights,
    "rm_template": RmTemplate,
    "rm_closing": RmClosing,
    "rm_labels": RmLabels,
    "reward_function": RewardFunction,
}


def written(values: Mapping[str, Any]) -> str | None:
    """The rewards among the values of a command's options; None where there are none. Ends the
    command with one sentence where they contradict each other."""
    models = [_named(text) for text in _listed(values.get("rm"))]
    functions = [_named(text) for text in _listed(values.get("reward_function"))]
    if functions and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where a script has its own modules, an installed command not
    extra = [name for name in list(OPTIONS)[1:] if values.get(name)]
    if not models and not functions:
        if extra:
            fail(f"{_flag(extra[0])} is given without --rm; name the reward model too")
        return None
    if len(models) == 1 and not extra and models[0][0] is None:
        return str(models[0][1])
    specs: dict[str, dict[str, Any]] = {}
    for name, path in models:
        _add(specs, name or Path(path).name, {"path": path})
    by_path = list(specs)
    for name, function in functions:
        _add(specs, name or function.rpartition(":")[2], {"function": function})
    for option, key, parse in (
        ("rm_template", "template", _template),
        ("rm_closing", "closing_ids", _closing),
        ("rm_labels", "labels", _labels),
    ):
        _spread(specs, by_path, option, key, _listed(values.get(option)), parse)
    for name, weight in _weights(values.get("weights"), specs).items():
        specs[name]["weight"] = weight
    return json.dumps(specs, sort_keys=True)


def lasting(text: str, find: Callable[[str], str]) -> str:
    """The same rewards with models that were looked for, by names that mean the same in another
    working directory."""
    if not text.startswith("{"):
        return find(text)
    specs = json.loads(text)
    for spec in specs.values():
        if "path" in spec:
            spec["path"] = absolute(find(spec["path"]))
    return json.dumps(specs, sort_keys=True)


def are_functions(text: str) -> bool:
    """Whether all of the rewards are functions, which guide any language model."""
    specs = json.loads(text) if text.startswith("{") else {}
    return bool(specs) and all("function" in spec for spec in specs.values())


def absolute(name: str) -> str:
    """A model's name that means the same in another working directory."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _listed(value: Any) -> list[str]:
    return [] if not value else [str(value)] if isinstance(value, (str, Path)) else list(value)


def _named(text: str) -> tuple[str | None, str]:
    """NAME=VALUE, or VALUE: a path may have an equals sign of its own."""
    name, equals, value = text.partition("=")
    if not equals or not name or "/" in name or Path(text).exists():
        return None, text
    return name, value


def _add(specs: dict[str, dict[str, Any]], name: str, spec: dict[str, Any]) -> None:
    if name in specs:
        fail(f"two rewards have the name {name!r}; give them names of their own: --rm NAME=MODEL")
    specs[name] = spec


def _spread(
    specs: dict[str, dict[str, Any]],
    by_path: list[str],
    option: str,
    key: str,
    texts: Iterable[str],
    parse: Callable[[str], Any],
) -> None:
    """Give an option to the reward that it names, or to every reward model."""
    for text in texts:
        name, value = _named(text)
        if name is not None and name not in by_path:
            fail(f"{_flag(option)} names {name!r}; the reward models are {', '.join(by_path)}")
        for one in by_path if name is None else [name]:
            specs[one][key] = parse(value)


def _template(text: str) -> str:
    if text not in TEMPLATES:
        fail(f"--rm-template is {text!r}; it must be one of {', '.join(TEMPLATES)}")
    return text


def _closing(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        fail(f"--rm-closing is {text!r}; it must be token ids, such as 128009,198")
    return [int(part) for part in parts]


def _labels(text: str) -> Any:
    if ":" not in text:
        return int(text) if text.isdecimal() else text
    return _numbers("--rm-labels", text, ":", "POSITIVE:1,NEGATIVE:-1")


def _weights(text: str | None, specs: Mapping[str, Any]) -> dict[str, float]:
    weights = _numbers("--weights", text, "=", "helpful=0.7,safe=0.3") if text else {}
    for name in weights:
        if name not in specs:
            fail(f"--weights names {name!r}; the rewards are {', '.join(specs)}")
    return weights


def _numbers(flag: str, text: str, sign: str, example: str) -> dict[str, float]:
    numbers = {}
    for part in text.split(","):
        name, _, number = part.strip().rpartition(sign)
        try:
            numbers[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            fail(f"{flag} is {text!r}; it must be like {example}")
    return numbers
