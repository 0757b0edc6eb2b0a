"""The output of a job: one JSON line for each line of the input.

A record begins with its line number, and an error record continues with its error, so that what is
done, and how, is read off the first bytes of each line.
"""

import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from args_fast.errors import ArgsError
from args_fast.generation import Generation

HEAD = re.compile(rb'\{"line": ([1-9][0-9]{0,17}), "(error": \{)?')


@dataclass(frozen=True)
class Origin:
    """Where a request comes from: its line, counted from 1, and the labels that are copied."""

    line: int
    labels: dict[str, Any]


Outcome = tuple[Origin, list[Generation] | ArgsError]  # a Generation for each sample


@dataclass(frozen=True)
class Finished:
    """One record, and what it adds to the sums.

    Attributes:
        record: a line of JSON, with its line break.
        is_error: whether it is an error record.
        tokens: new tokens of all its samples.
        rewarded: the number of samples in which the reward model had a say.
        reward: the sum over those of r([x, y]) of the whole text.
    """

    record: bytes
    is_error: bool
    tokens: int
    rewarded: int
    reward: float


def finish(outcome: Outcome, *, scores: bool) -> Finished:
    """The record of an outcome.

    Args:
        outcome: where a request comes from, and its samples or its error.
        scores: with the floats of every token. They are what rounding makes of them in the batch
            that the request happened to be in; all other fields are the same in every run.
    """
    origin, result = outcome
    content: dict[str, Any] = {"line": origin.line}
    if isinstance(result, ArgsError):
        content["error"] = {"type": type(result).__name__, "message": str(result)}
        content |= origin.labels
        return Finished(_encode(content), True, 0, 0, 0.0)
    content |= origin.labels
    samples = [_sample(generation, scores=scores) for generation in result]
    content |= samples[0] if len(samples) == 1 else {"samples": samples}
    rewards = [each.rewards[-1] for each in result if isfinite(each.rewards[-1])]
    tokens = sum(len(generation.token_ids) for generation in result)
    return Finished(_encode(content), False, tokens, len(rewards), sum(rewards))


def _sample(generation: Generation, *, scores: bool) -> dict[str, Any]:
    sample: dict[str, Any] = {
        "text": generation.text,
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": len(generation.prompt_token_ids),
    }
    if scores or generation.candidates is not None:
        values = generation.as_json()
        if scores:
            sample |= {name: values[name] for name in ("logprobs", "rewards", "scores")}
        if generation.candidates is not None:
            sample["candidates"] = values["candidates"]
    return sample


def _encode(content: dict[str, Any]) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair in an id
        return json.dumps(content, allow_nan=False).encode() + b"\n"


def head(line: bytes) -> tuple[int, bool] | None:
    """(line number, whether it is an error record) of a whole record; None of anything else."""
    match = HEAD.match(line)
    if match is None or not line.endswith(b"}\n"):
        return None
    return int(match[1]), match[2] is not None
