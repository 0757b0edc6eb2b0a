"""Responses in the formats of other benchmarks, so that nothing has to be decoded again."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from args_fast.eval.methods import Method
from args_fast.eval.plan import Plan
from args_fast.eval.prompts import kept_prompts
from args_fast.eval.records import Records, write_json

FORMATS = ("alpaca_eval", "rewardbench")


def export(plan: Plan, folder: Path, form: str) -> list[Path]:
    """Write a run's responses in one of ``FORMATS``; returns the files.

    "alpaca_eval": ``METHOD.json`` for ``alpaca_eval --model_outputs``, a list of objects with
    instruction, output and generator.

    "rewardbench": ``METHOD.jsonl`` for ``rewardbench --load_json --dataset``, a conversation a line
    under "messages", to be scored by another reward model; and ``METHOD-over-BASELINE.jsonl`` with
    prompt, chosen and rejected, where accuracy is how often the method wins.
    """
    out = folder / form
    out.mkdir(exist_ok=True)
    items, _ = kept_prompts(folder / "prompts.json")
    written = []
    with Records(folder / "samples.jsonl", ("method", "index")) as samples:
        answers = {
            method.key: {
                index: sample["response"]
                for index in range(len(items))
                if (sample := samples.get(method.key, index)) and "error" not in sample
            }
            for method in plan.methods
        }
    texts = [item.text for item in items]
    for method in plan.methods:
        own, name = answers[method.key], file_name(method)
        if form == "alpaca_eval":
            written.append(out / f"{name}.json")
            write_json(
                written[-1],
                [
                    {"instruction": texts[i], "output": answer, "generator": method.label}
                    for i, answer in own.items()
                ],
            )
            continue
        written.append(out / f"{name}.jsonl")
        _write_lines(
            written[-1],
            (
                {
                    "messages": [
                        *_messages(items[i].prompt),
                        {"role": "assistant", "content": answer},
                    ]
                }
                for i, answer in own.items()
            ),
        )
        baseline = plan.baseline
        if method != baseline:
            written.append(out / f"{name}-over-{file_name(baseline)}.jsonl")
            _write_lines(
                written[-1],
                (
                    {"prompt": texts[i], "chosen": own[i], "rejected": answers[baseline.key][i]}
                    for i in own.keys() & answers[baseline.key].keys()
                ),
            )
    return written


def file_name(method: Method) -> str:
    """A method's label as a file's name."""
    return re.sub(r"[^\w.=-]+", "-", method.label).strip("-")


def _messages(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _write_lines(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
