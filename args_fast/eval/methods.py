"""The ways to decode that an evaluation compares, each with its options and its costs.

A method is written "KIND" or "KIND:option=value,option=value", such as "args-greedy:w=1.5,k=10".
What the engine can do, it does: top-k sampling is ARGS-stochastic with w = 0. Contrastive search
and nucleus sampling have loops of their own over the language model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from args_fast.config import DecodingConfig
from args_fast.errors import EvaluationError

Value = int | float | str


@dataclass(frozen=True)
class Kind:
    """One kind of method.

    Attributes:
        summary: what it does, in one line.
        defaults: its options and their values in the paper; a str option has no default value.
        config: the engine's options for it, from its own; None where it has its own loop.
        lm_rows: rows of the language model per new token of one response.
        rm_rows: rows of the reward model per new token of one response.
    """

    summary: str
    defaults: Mapping[str, Value]
    config: Callable[[Mapping[str, Any]], dict[str, Any]] | None
    lm_rows: Callable[[Mapping[str, Any]], int] = lambda options: 1
    rm_rows: Callable[[Mapping[str, Any]], int] = lambda options: 0


GREEDY: dict[str, Any] = {"k": 1, "w": 0.0}


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"k": options["k"], "w": 0.0, "temperature": options["temperature"]}


def _judged_rows(options: Mapping[str, Any]) -> int:
    return options["k"] if options["k"] > 1 and options["w"] != 0 else 0


KINDS: dict[str, Kind] = {
    "greedy": Kind("the most likely token", {}, lambda options: GREEDY),
    "top-k": Kind("a draw from the k most likely tokens", {"k": 40, "temperature": 0.7}, _sampling),
    "nucleus": Kind(
        "a draw from the tokens of probability p", {"p": 0.95, "temperature": 1.0}, None
    ),
    "contrastive": Kind(
        "likely, and unlike the text so far",
        {"k": 8, "alpha": 0.6},
        None,
        lm_rows=lambda options: options["k"],
    ),
    "best-of-n": Kind(
        "of n sampled responses the one with the highest reward",
        {"n": 10, "k": 40, "temperature": 0.7},
        lambda options: {**_sampling(options), "num_return_sequences": options["n"]},
        lm_rows=lambda options: options["n"],
        rm_rows=lambda options: options["n"],
    ),
    "args-greedy": Kind(
        "the highest score (eq. 2)", {"w": 1.5, "k": 10}, dict, rm_rows=_judged_rows
    ),
    "args-stochastic": Kind(
        "a draw from the scores (eq. 3)",
        {"w": 1.5, "k": 10, "temperature": 0.7},
        dict,
        rm_rows=_judged_rows,
    ),
    "policy": Kind(
        "greedy decoding by another language model, such as one trained with PPO or DPO",
        {"path": ""},
        lambda options: GREEDY,
    ),
}


@dataclass(frozen=True)
class Method:
    """One method with all of its options.

    Attributes:
        kind: a name of ``KINDS``.
        options: its options in the order of the kind's defaults.
        name: what tables call it, where something other than ``key`` is wanted.
    """

    kind: str
    options: tuple[tuple[str, Value], ...]
    name: str | None = None

    @property
    def key(self) -> str:
        """The method written in full: what names its samples in a run."""
        options = ",".join(f"{name}={_shown(value)}" for name, value in self.options)
        return f"{self.kind}:{options}" if options else self.kind

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return self.name or self.key

    @property
    def lm(self) -> str | None:
        """The language model that decodes, where it is not the evaluation's own."""
        return str(dict(self.options)["path"]) if self.kind == "policy" else None

    @property
    def rows(self) -> dict[str, int]:
        """Rows that each model runs per new token of one response, by the algorithm."""
        kind, options = KINDS[self.kind], dict(self.options)
        return {"lm": kind.lm_rows(options), "rm": kind.rm_rows(options)}

    def config(self, max_new_tokens: int, seed: int, stop: tuple[str, ...]) -> DecodingConfig:
        """The engine's options. The kind must have some (``KINDS[kind].config``)."""
        make = KINDS[self.kind].config
        assert make is not None
        return DecodingConfig(
            **make(dict(self.options)), max_new_tokens=max_new_tokens, seed=seed, stop=stop
        )


def parse(written: str | Mapping[str, Any]) -> Method:
    """A method from "KIND:option=value,...", or from {KIND: {option: value}} as YAML has it.

    The option ``name`` sets what tables call it.

    Raises:
        EvaluationError: the kind or an option is not known, or a value is out of its range.
    """
    kind, text_value = _split(written)
    if kind not in KINDS:
        raise EvaluationError(f"the method is {kind!r}; it must be one of {', '.join(KINDS)}")
    name = text_value.pop("name", None)
    defaults = KINDS[kind].defaults
    unknown = [option for option in text_value if option not in defaults]
    if unknown:
        allowed = ", ".join(defaults) or "none but name"
        raise EvaluationError(f"{kind} has no option {unknown[0]!r}; its options are {allowed}")
    options = {option: _value(kind, option, text_value.get(option)) for option in defaults}
    method = Method(kind, tuple(options.items()), None if name is None else str(name))
    _check(method)
    return method


def _split(written: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(written, Mapping):
        if len(written) != 1:
            raise EvaluationError(
                f"a method is {dict(written)!r}; it must be one kind with its options, such as "
                "args-greedy: {w: 1.5}"
            )
        ((kind, options),) = written.items()
        return str(kind), dict(options or {})
    kind, _, remainder = written.partition(":")
    text_value: dict[str, Any] = {}
    for part in remainder.split(",") if remainder else []:
        option, equals, value = part.partition("=")
        if not equals:
            raise EvaluationError(
                f"{part!r} in the method {written!r} is not option=value, such as w=1.5"
            )
        text_value[option.strip()] = value.strip()
    return kind.strip(), text_value


def _value(kind: str, option: str, text_value: Any) -> Value:
    default = KINDS[kind].defaults[option]
    if text_value is None:
        text_value = default
    if isinstance(default, str):
        if not text_value:
            raise EvaluationError(f"{kind} needs {option}=..., such as {kind}:{option}=out/dpo")
        return str(text_value)
    try:
        value = type(default)(text_value)
        if value != float(text_value):
            raise ValueError  # 1.5 for a whole number
        return value
    except (TypeError, ValueError):
        expected = "a whole number" if isinstance(default, int) else "a number"
        raise EvaluationError(
            f"{option} of {kind} is {text_value!r}; it must be {expected}, such as {default}"
        ) from None


def _check(method: Method) -> None:
    """Ranges that the engine does not check itself, and then the engine's."""
    ranges: dict[str, tuple[float, float]] = {"alpha": (0, 1), "p": (1e-6, 1), "n": (1, 1000)}
    ranges["temperature"] = (1e-6, 1e6)  # at 0 a method that draws would be another one
    if method.kind == "contrastive":
        ranges["k"] = (1, 128)
    for option, value in method.options:
        low, high = ranges.get(option, (-math.inf, math.inf))
        if not isinstance(value, str) and not low <= value <= high:
            raise EvaluationError(
                f"{option} of {method.kind} is {value}; it must be {low:g} to {high:g}"
            )
    if KINDS[method.kind].config is not None:
        method.config(1, 0, ())  # raises ConfigError


def _shown(value: Value) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
