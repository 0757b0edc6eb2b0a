"""Rewards as plain data: what ``ArgsDecoder.from_pretrained`` takes, and what the command line, a
configuration or a job on other machines can write down."""

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from args_fast.errors import ConfigError
from args_fast.rewards.base import Reward
from args_fast.rewards.function import Function
from args_fast.rewards.loading import load
from args_fast.rewards.mixture import Mixture

OPTIONS = frozenset(
    ["template", "closing_ids", "head", "labels", "too_long", "tokenizers", "base", "quantization"]
)


def load_rewards(rm: Any, **options: Any) -> Any:
    """What stands for the reward of a decoder, with everything in it loaded.

    Args:
        rm: a path; an object that stands for a reward; or several of these by name, each of which
            may be a mapping too: ``{"path": ..., "weight": ...}`` with options of ``rewards.load``,
            or ``{"function": "module:name", "weight": ...}``. With weights they form a mixture. The
            JSON of such a mapping stands for it.
        options: for ``rewards.load``.

    Raises:
        ConfigError: an entry is not understood; else as for ``rewards.load``.
    """
    if isinstance(rm, str) and rm.startswith("{"):
        rm = _parsed(rm)
    if not isinstance(rm, Mapping):
        return _loaded(None, rm, options)
    if not rm:
        raise ConfigError("rm is an empty mapping; name at least one reward")
    specs = {name: dict(s) if isinstance(s, Mapping) else s for name, s in rm.items()}
    weights = {
        n: s.pop("weight") for n, s in specs.items() if isinstance(s, dict) and "weight" in s
    }
    made = {name: _loaded(name, spec, options) for name, spec in specs.items()}
    if not weights:
        return made
    return Mixture([(made[name], weights.get(name, 1.0)) for name in made], names=list(made))


def _loaded(name: str | None, spec: Any, options: dict) -> Any:
    if isinstance(spec, (Reward, Mixture, nn.Module)):
        return spec
    if not isinstance(spec, dict):
        spec = {"path": spec}
    if "function" in spec:
        _check(name, spec, {"function"})
        return Function(find_function(spec["function"]), name=name)
    _check(name, spec, {"path"} | OPTIONS)
    own = {key: value for key, value in spec.items() if key != "path"}
    if isinstance(own.get("labels"), Mapping):  # JSON has no keys but strings
        own["labels"] = {_index(label): weight for label, weight in own["labels"].items()}
    return load(spec["path"], **({"name": name} | options | own))


def _check(name: str | None, spec: Mapping[str, Any], allowed: set[str] | frozenset[str]) -> None:
    unknown = sorted(set(spec) - allowed)
    if unknown or not {"path", "function"} & set(spec):
        said = f"has {unknown[0]!r}" if unknown else "has no path"
        raise ConfigError(f"the reward {name!r} {said}; it may have {', '.join(sorted(allowed))}")


def _index(label: Any) -> Any:
    return int(label) if isinstance(label, str) and label.isdecimal() else label


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"rm begins with {{ and is not JSON: {error}") from error


def find_function(written: str) -> Callable[..., Any]:
    """The function that ``module:name`` names. Raises ConfigError."""
    module_name, _, attribute = str(written).partition(":")
    if not module_name or not attribute:
        raise ConfigError(
            f"the reward function is {written!r}; write module:name, such as my_rewards:politeness"
        )
    try:
        function: Any = importlib.import_module(module_name)
    except Exception as error:  # a module raises what it likes
        raise ConfigError(
            f"the module {module_name!r} of the reward function cannot be imported "
            f"({type(error).__name__}: {error}); it must be in this folder or on PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ConfigError(
            f"the module {module_name!r} has no function {attribute!r}; it must be "
            "callable(prompts, responses) -> rewards"
        )
    return function  # type: ignore[no-any-return]
