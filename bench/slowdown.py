"""The slowdown: how it is defined (``DEFINITION``), measured and shown.

The project has no other definition of it. Every method is a function from prompts to tokens and is
timed from outside, so transformers, the published way of caching and our engine are measured alike.
The methods of a case take turns, round by round, so that a change of the machine's speed meets all
of them.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from args_fast import ArgsDecoder
from args_fast.bench import baselines
from args_fast.bench.baselines.engine import own_layers
from args_fast.bench.cases import Case
from args_fast.bench.timing import summary, timed
from args_fast.bench.traffic import step_bytes

DEFINITION = (
    "A step is (T(n) - T(1)) / (n - 1), where T(n) is the time of decoding n new tokens after the "
    "prompt, so the prompt's time is not in it. A slowdown (x) is a step over that of the greedy "
    "decoding that is named, in the same run. The first token is T(1). Medians and quartiles of "
    "rounds. GB/s: the bytes that a step cannot avoid reading, over its time; 'of read': over the "
    "bandwidth of a plain read."
)
Turn = tuple[float, float]  # seconds of T(n) and of T(1)
Report = Callable[[str], None]  # gets a line of progress
Figures = dict[str, Any]  # of one method: see ``Method.figures``


def say(line: str) -> None:
    """Reports a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


def slowdown(methods: dict[str, Figures], method: str, greedy: str) -> float | None:
    """The step of a method over that of a greedy decoding; None where one was not measured."""
    steps = [methods.get(name, {}).get("step", {}).get("median") for name in (method, greedy)]
    return steps[0] / steps[1] if all(steps) else None


@dataclass
class Method:
    """One way of decoding, and what its turns gave.

    Attributes:
        name: In tables.
        decode: Seconds that this many new tokens took, prompt included, and the tokens.
        new_tokens: Decoded in a turn; then one alone.
        rounds: Turns at most.
        warm_ups: Decodes of both lengths before the first turn.
        batch: Prompts decoded together.
        bytes_read: Bytes that a step cannot avoid reading, where they are known.
    """

    name: str
    decode: Callable[[int], tuple[float, list[list[int]]]]
    new_tokens: int
    rounds: int
    warm_ups: int = 1
    batch: int = 1
    bytes_read: int | None = None
    turns: list[Turn] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    error: str | None = None

    def turn(self) -> Turn | None:
        """T(n) and T(1); None after an error, which ends the method's turns."""
        if self.error is None:
            try:
                whole, self.token_ids = self._decode(self.new_tokens)
                return whole, self._decode(1)[0]
            except Exception as error:
                self.error = first_line(error)
        return None

    def _decode(self, new_tokens: int) -> tuple[float, list[list[int]]]:
        took, token_ids = self.decode(new_tokens)
        counts = [len(ids) for ids in token_ids]
        if counts != [new_tokens] * self.batch:
            raise RuntimeError(f"gave {counts} tokens, and {new_tokens} were asked for")
        return took, token_ids

    def figures(self) -> Figures:
        """What the turns say: "step" and "first" in seconds, each a Sample, tokens and bytes per
        second of a step; or "error"."""
        steps = [(whole - first) / (self.new_tokens - 1) for whole, first in self.turns]
        if self.error is None and summary(steps)["median"] <= 0:
            self.error = (
                f"{self.new_tokens} tokens took no longer than one: the machine is too noisy to "
                "time a step; decode more new tokens, or stop what else is running"
            )
        if self.error is not None:
            return {"error": self.error}
        step = summary(steps)
        return {
            "new_tokens": self.new_tokens,
            "step": step,
            "first": summary([first for _, first in self.turns]),
            "tokens_per_second": self.batch / step["median"],
            "bytes_per_second": self.bytes_read / step["median"] if self.bytes_read else None,
        }


def take_turns(methods: Sequence[Method], report: Report = say) -> dict[str, Figures]:
    """Warm the methods up, let them take turns, and return their figures. A method that fails is a
    result: {"error": its first line}. ``report`` gets a line before every turn."""
    for method in methods:
        report(f"warming up: {method.name}")
        for _ in range(method.warm_ups):
            method.turn()
    for number in range(max(method.rounds for method in methods)):
        for method in methods:
            if number < method.rounds:
                report(f"round {number + 1} of {method.rounds}: {method.name}")
                turn = method.turn()
                if turn is not None:
                    method.turns.append(turn)
    return {method.name: method.figures() for method in methods}


def measure_case(
    pair: ArgsDecoder, case: Case, *, rounds: int = 5, report: Report = say
) -> dict[str, Figures]:
    """Measure the methods of a case in this process. The cache of ``pair`` has room for the case;
    slow methods take fewer rounds (``baselines.MOST_ROUNDS``)."""
    prompts = case.prompts(pair.language_model.config.get_text_config().vocab_size)

    def decode(name: str, new_tokens: int) -> tuple[float, list[list[int]]]:
        method = partial(baselines.METHODS[name], pair, prompts, case.config(new_tokens))
        return timed(method, pair.device)

    methods = []
    for name in case.methods:
        new_tokens = case.tokens_of(name)
        models = [pair.language_model]
        if name not in (*baselines.GREEDIES, *baselines.ADAPTERS):
            models.append(pair.reward_model)
        if name in baselines.THEIRS:
            models = [own_layers(model) for model in models]
        methods.append(
            Method(
                name,
                partial(decode, name),
                new_tokens,
                min(rounds, baselines.MOST_ROUNDS.get(name, rounds)),
                baselines.warm_ups(name, pair.device.type),
                case.batch,
                step_bytes(*models, prefix=case.prompt + new_tokens // 2, batch=case.batch),
            )
        )
    return take_turns(methods, report)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:400]


# ---- as a table ----------------------------------------------------------------------------------

HEADER = ("", "ms per step", "quartiles", "tokens/s", "GB/s", "of read", "first token, ms")


def headline(methods: dict[str, Figures], method: str = baselines.ARGS) -> str:
    """The ratios in one sentence, each with the greedy decoding that it is against."""
    ratios = {name: slowdown(methods, method, name) for name in baselines.GREEDIES}
    words = [f"{ratio:.2f} times {name}" for name, ratio in ratios.items() if ratio]
    return f"{method}: a step takes {', '.join(words) or 'a time that could not be measured'}"


def table(
    methods: dict[str, Figures], bandwidth: float, greedies: Sequence[str] = baselines.GREEDIES
) -> list[list[str]]:
    """The figures of all methods as rows of cells, the header first.

    Args:
        methods: What ``take_turns`` returns; where "equal_tokens" is among it, they are shown too.
        bandwidth: Bytes per second of a plain read in the same run.
        greedies: Slowdowns are against those that were measured.
    """
    greedies = [name for name in greedies if name in methods]
    compared = any("equal_tokens" in record for record in methods.values())
    rows = [[*HEADER, *(f"x {name}" for name in greedies), *["equal tokens"] * compared]]
    for name, record in methods.items():
        if "error" in record:
            rows.append([name, "failed", *[""] * (len(rows[0]) - 2)])
            continue
        step, rate = record["step"], record["bytes_per_second"]
        ratios = [slowdown(methods, name, greedy) for greedy in greedies]
        rows.append(
            [
                name,
                f"{step['median'] * 1e3:.2f}",
                f"{step['low'] * 1e3:.2f}-{step['high'] * 1e3:.2f}",
                f"{record['tokens_per_second']:.1f}",
                f"{rate / 1e9:.1f}" if rate else "",
                f"{rate / bandwidth:.0%}" if rate else "",
                f"{record['first']['median'] * 1e3:.1f}",
                *(f"{ratio:.2f}" if ratio else "" for ratio in ratios),
                *["/".join(map(str, record.get("equal_tokens", ())))] * compared,
            ]
        )
    return rows


def shown(methods: dict[str, Figures], *arguments: Any) -> list[str]:
    """The lines of a page: ``table`` of the same arguments, and what failed."""
    failed = [f"\n- {line}" for line in failures(methods)]
    return [as_markdown(table(methods, *arguments)), *failed]


def failures(methods: dict[str, Figures]) -> list[str]:
    """A line for every method that has no figures."""
    return [f"{name}: {record['error']}" for name, record in methods.items() if "error" in record]


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as a table that reads well in a terminal too."""
    columns = []
    for i, column in enumerate(zip(*rows, strict=True)):
        width = max(3, *map(len, column))
        header, *cells = (cell.rjust(width) if i else cell.ljust(width) for cell in column)
        rule = "-" * (width - 1) + ":" if i else "-" * width
        columns.append([header, rule, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))
