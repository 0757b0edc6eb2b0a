"""One evaluation, from prompts to results, in a folder that survives a kill.

    1. choose the prompts                       prompts.json
    2. decode them by each method               samples.jsonl
    3. measure each response                    scores.jsonl
    4. time each method on a few prompts        speed.json
    5. put means and intervals together         results.json

Each step skips what its file holds already. A method or a judge that is added later costs only
itself. What all records depend on is in settings.json, and a folder is never resumed with others.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from args_fast.errors import ArgsError
from args_fast.eval.decode import Limits, decode
from args_fast.eval.intervals import require
from args_fast.eval.measure import measure
from args_fast.eval.plan import OpenPair, Pairs, Plan, Report, Run
from args_fast.eval.prompts import choose
from args_fast.eval.provenance import model_hash
from args_fast.eval.records import Records, settle, write_json
from args_fast.eval.results import summarize
from args_fast.eval.speed import time_methods

SEEDS_PER_PROMPT = 1000  # best-of-n draws with a seed for each of its samples
FILES = ("settings.json", "prompts.json", "samples.jsonl", "scores.jsonl", "speed.json")


def evaluate(plan: Plan, folder: Path, open_pair: OpenPair, report: Report) -> dict[str, Any]:
    """Do what is missing of a run, and write and return its results.

    Args:
        plan: what to compare and measure.
        folder: where the run is kept; created, or resumed.
        open_pair: loads a decoder from the names of a language model and a reward.
        report: is called as work is done.

    Raises:
        EvaluationError: data, methods or judges cannot be read, or the folder has another run.
    """
    require("scipy")
    for judge in plan.judges:
        if judge.is_function:
            judge.function()  # what cannot be imported fails now, not after hours of decoding
    folder.mkdir(parents=True, exist_ok=True)
    # A model that was trained again under its old name is another model.
    models = [model_hash(name) for name in (plan.settings.lm, plan.settings.rm)]
    settle(folder / "settings.json", {**asdict(plan.settings), "models": models})
    pairs = Pairs(open_pair)
    items, skipped = choose(plan.settings, folder / "prompts.json", pairs)
    samples = Records(folder / "samples.jsonl", ("method", "index"))
    scores = Records(folder / "scores.jsonl", ("measure", "method", "index"))
    with samples, scores:
        run = Run(plan, folder, items, skipped, samples, scores)
        _decode(run, pairs, report)
        time_methods(run, pairs, report)
        measure(run, pairs, report)
        results = summarize(run, pairs)
    write_json(folder / "results.json", results)
    return results


def clear(folder: Path) -> None:
    """Remove a run's files from its folder, and nothing else."""
    for name in (*FILES, "results.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("alpaca_eval", "rewardbench"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _decode(run: Run, pairs: Pairs, report: Report) -> None:
    settings = run.plan.settings
    limits = Limits(settings.max_new_tokens, settings.stop)
    # The run's own language model first, so that it is loaded once.
    for method in sorted(run.plan.methods, key=lambda method: method.lm is not None):
        missing = [i for i in range(len(run.items)) if (method.key, i) not in run.samples]
        done = len(run.items) - len(missing)
        report(method.label, done, len(run.items))
        if not missing:
            continue
        decoder = pairs.get(method.lm or settings.lm, settings.rm)
        seeds = [settings.seed + SEEDS_PER_PROMPT * index for index in missing]
        requests = ((run.items[i].prompt, seed) for i, seed in zip(missing, seeds, strict=True))
        for number, response in decode(decoder, method, requests, limits):
            item = run.items[missing[number]]
            record = {"method": method.key, "index": missing[number], "id": item.id}
            if isinstance(response, ArgsError):
                record["error"] = str(response)
            else:
                record |= {"seed": seeds[number], "prompt": item.prompt, "response": response.text}
                record |= {
                    name: value for name, value in asdict(response).items() if name != "text"
                }
            run.samples.append([record])
            done += 1
            report(method.label, done, len(run.items))
