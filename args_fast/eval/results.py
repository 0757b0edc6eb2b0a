"""Means, intervals and counts of a run: what results.json holds and every table shows."""

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from args_fast.eval.cuts import cut_for_diversity
from args_fast.eval.diversity import diversity, published_diversity, split_words
from args_fast.eval.intervals import Interval, gain_interval, mean_interval
from args_fast.eval.measure import SURPRISE, Sample, measures
from args_fast.eval.methods import Method
from args_fast.eval.plan import Pairs, Plan, Run
from args_fast.eval.prompts import data_hash
from args_fast.eval.provenance import environment, file_hash, model_hash
from args_fast.eval.speed import summarize_speed

TEXT_MEASURES: dict[str, Callable[[Sample], float]] = {
    "diversity": lambda sample: diversity(sample["response"]),
    "published_diversity": lambda sample: published_diversity(
        cut_for_diversity(sample["response"])
    ),
    "tokens": lambda sample: len(sample["token_ids"]),
    "ended": lambda sample: float(sample["finish_reason"] != "length"),
}
PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Values:
    """Of one method: the value of each measure by the prompt's index, and how many are missing."""

    by_measure: dict[str, dict[int, float]]
    skipped: dict[str, int]


def summarize(run: Run, pairs: Pairs) -> dict[str, Any]:
    """The results of a run as plain JSON values."""
    plan = run.plan
    values = {method.key: _values(run, pairs, method) for method in plan.methods}
    speed_file = run.folder / "speed.json"
    speed = json.loads(speed_file.read_text()) if speed_file.exists() else None
    return {
        "settings": _settings(plan),
        "baseline": plan.baseline.key,
        "prompts": {"count": len(run.items), "too_long": run.skipped, "hash": data_hash(run.items)},
        "judges": {judge.name: short_name(judge.source) for judge in plan.judges},
        "encoder": plan.encoder and {"path": short_name(plan.encoder), "pooling": plan.pooling},
        "words": split_words()[1],
        "methods": [_method(run, method, values, speed) for method in plan.methods],
        "speed": speed and {name: speed[name] for name in ("tokens", "batch", "device")},
        "environment": {**environment(), "hashes": _hashes(run)},
    }


def _values(run: Run, pairs: Pairs, method: Method) -> Values:
    samples = [
        sample
        for index in range(len(run.items))
        if (sample := run.samples.get(method.key, index)) is not None and "error" not in sample
    ]
    by_measure: dict[str, dict[int, float]] = {}
    skipped: dict[str, int] = {}
    for measure in measures(run, pairs):
        by_measure[measure.name], skipped[measure.name] = _scored(run, measure.key, samples)
    for name, value in TEXT_MEASURES.items():
        by_measure[name] = {sample["index"]: float(value(sample)) for sample in samples}
    return Values(by_measure, skipped)


def _scored(run: Run, key: str, samples: list[Sample]) -> tuple[dict[int, float], int]:
    values: dict[int, float] = {}
    for sample in samples:
        record = run.scores.get(key, sample["method"], sample["index"])
        if record is not None and record["value"] is not None:
            values[sample["index"]] = record["value"]
    return values, len(samples) - len(values)


def _method(
    run: Run, method: Method, values: dict[str, Values], speed: dict[str, Any] | None
) -> dict[str, Any]:
    own, baseline = values[method.key], values[run.plan.baseline.key]
    seed = run.plan.settings.seed
    by_name: dict[str, Any] = {}
    for name, summary in own.by_measure.items():
        by_name[name] = _measured(
            mean_interval(list(summary.values()), seed),
            gain_interval(summary, baseline.by_measure[name], seed),
            skipped=own.skipped.get(name, 0),
        )
    by_name[PERPLEXITY] = _exponential(by_name.pop(SURPRISE))
    seconds = speed["seconds_per_token"] if speed else {}
    records = [run.samples.get(method.key, index) for index in range(len(run.items))]
    answers = [record["response"] for record in records if record and "error" not in record]
    return {
        "method": method.key,
        "label": method.label,
        "kind": method.kind,
        "options": dict(method.options),
        "answered": len(answers),
        "errors": sum(bool(record and "error" in record) for record in records),
        "measures": by_name,
        "compression_ratio": compression_ratio(answers),
        "rows_per_token": method.rows,
        "speed": summarize_speed(
            seconds.get(method.key, []), seconds.get(run.plan.baseline.key, [])
        ),
    }


def _measured(mean: Interval, gain: Interval, skipped: int) -> dict[str, Any]:
    return {**mean.as_json(), "skipped": skipped, "gain": gain.as_json()}


def _exponential(surprise: dict[str, Any]) -> dict[str, Any]:
    """Perplexity from the mean surprise; a gain becomes a factor."""

    def exponential(interval: dict[str, Any]) -> dict[str, Any]:
        ends = {name: interval[name] for name in ("mean", "low", "high")}
        return {name: None if value is None else math.exp(value) for name, value in ends.items()}

    return {
        **surprise,
        **exponential(surprise),
        "gain": {**surprise["gain"], **exponential(surprise["gain"])},
    }


def compression_ratio(texts: list[str]) -> float | None:
    """Bytes of all texts over their bytes as gzip: higher is more repetitive (Shaib et al., 2024).

    One number for all responses of a method; it has no interval, since texts that are drawn twice
    would compress too well.
    """
    raw = "\n".join(texts).encode()
    return len(raw) / len(gzip.compress(raw, mtime=0)) if raw else None


def short_name(name: str) -> str:
    """The last two parts of a path, or a hub id as it is: results are passed on, and where a folder
    lay on one machine says nothing on another. The hashes say what it held."""
    return "/".join(Path(name).parts[-2:])


def _settings(plan: Plan) -> dict[str, Any]:
    settings = asdict(plan.settings)
    kind, colon, path = plan.settings.data.partition(":")
    return {
        **settings,
        "lm": short_name(plan.settings.lm),
        "rm": short_name(plan.settings.rm),
        "data": f"{kind}{colon}{short_name(path) if path else ''}",
        "stop": list(plan.settings.stop),
    }


def _hashes(run: Run) -> dict[str, str | None]:
    """Of each model by its part in the plan, and of the samples."""
    plan = run.plan
    names = {"lm": plan.settings.lm, "rm": plan.settings.rm, "encoder": plan.encoder}
    names |= {method.label: method.lm for method in plan.methods}
    names |= {f"judge:{judge.name}": judge.source for judge in plan.judges if not judge.is_function}
    hashes = {part: model_hash(name) for part, name in names.items() if name is not None}
    return {**hashes, "samples.jsonl": f"sha256:{file_hash(run.samples.path)}"}
