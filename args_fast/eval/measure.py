"""What is measured of each response: rewards, surprise to the language model, coherence.

Values are kept in the run's scores, one record each; None where a text is too long for a reward.
Measures of the text alone cost nothing and are computed with the results.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from args_fast.errors import ArgsError, EvaluationError
from args_fast.eval import data
from args_fast.eval.cuts import cut_for_diversity, cut_for_reward, keep_tokens
from args_fast.eval.encoder import Encoder
from args_fast.eval.plan import Pairs, Report, Run

if TYPE_CHECKING:
    from args_fast.decoder import ArgsDecoder

REWARD, SURPRISE, COHERENCE = "reward", "surprise", "coherence"
CHUNK = 16  # responses that are measured between two records

Sample = dict[str, Any]
Scorer = Callable[[Sequence[Sample]], list[float | None]]


@dataclass(frozen=True)
class Measure:
    """One measure: what results call it, what names its values in the scores (the same name from
    another source is another measure), and how its scorer is made once it is needed."""

    name: str
    key: str
    scorer: Callable[[], Scorer]


def judge_measure(name: str) -> str:
    """What results call the values of a judge."""
    return f"judge:{name}"


def measure(run: Run, pairs: Pairs, report: Report) -> None:
    """Measure every response that has no value yet."""
    total = sum("error" not in sample for sample in _samples(run))
    for open_items in measures(run, pairs):
        missing = [
            sample
            for sample in _samples(run)
            if "error" not in sample
            and (open_items.key, sample["method"], sample["index"]) not in run.scores
        ]
        done = total - len(missing)
        report(open_items.name, done, total)
        if not missing:
            continue
        score = open_items.scorer()
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            run.scores.append(
                {
                    "measure": open_items.key,
                    "method": sample["method"],
                    "index": sample["index"],
                    "value": None if value is None or math.isnan(value) else float(value),
                }
                for sample, value in zip(chunk, score(chunk), strict=True)
            )
            done += len(chunk)
            report(open_items.name, done, total)


def _samples(run: Run) -> Iterator[Sample]:
    keys = {method.key for method in run.plan.methods}
    return (sample for sample in run.samples if sample["method"] in keys)


def measures(run: Run, pairs: Pairs) -> Iterator[Measure]:
    """All measures of a run's plan that are kept in its scores."""
    plan = run.plan

    def of_pair(rm: str, make: Callable[[Run, "ArgsDecoder"], Scorer]) -> Callable[[], Scorer]:
        return lambda: make(run, pairs.get(plan.settings.lm, rm))

    yield Measure(REWARD, REWARD, of_pair(plan.settings.rm, _rewards))
    yield Measure(SURPRISE, SURPRISE, of_pair(plan.settings.rm, _surprise))
    for judge in plan.judges:
        scorer = partial(_function, run, judge)
        if not judge.is_function:
            scorer = of_pair(judge.source, _rewards)  # type: ignore[assignment]
        yield Measure(judge_measure(judge.name), f"judge:{judge.source}", scorer)
    if plan.encoder is not None:
        key = f"{COHERENCE}:{plan.encoder}:{plan.pooling}"
        yield Measure(COHERENCE, key, partial(_coherence, run))


# ---- scorers -------------------------------------------------------------------------------------


def _rewards(run: Run, decoder: "ArgsDecoder") -> Scorer:
    """r([prompt, response]) after the data set's cut; the end token is part of the response."""
    kind = data.kind_of(run.plan.settings.data)

    def score(samples: Sequence[Sample]) -> list[float | None]:
        values: list[float | None] = [None] * len(samples)
        prompts, kept, places = [], [], []
        for place, sample in enumerate(samples):
            text = cut_for_reward(sample["response"]) if kind.cut else sample["response"]
            ids = keep_tokens(decoder.tokenizer, sample["token_ids"], text)
            length = len(sample["prompt_token_ids"]) + len(ids)
            if not ids or (kind.reward_below is not None and length >= kind.reward_below):
                continue
            prompts.append(sample["prompt"])
            kept.append(ids)
            places.append(place)
        for place, value in zip(places, _per_text(decoder.rewards, prompts, kept), strict=True):
            values[place] = value
        return values

    return score


def _surprise(run: Run, decoder: "ArgsDecoder") -> Scorer:
    """Mean of -log p_LM over the response's tokens: perplexity is e to this power."""

    def surprises(texts: list[list[int]], lengths: list[int]) -> list[float]:
        scored = zip(decoder.score(texts), lengths, strict=True)
        return [-sum(logprobs[-length:]) / length for logprobs, length in scored]

    def score(samples: Sequence[Sample]) -> list[float | None]:
        texts = [sample["prompt_token_ids"] + sample["token_ids"] for sample in samples]
        return _per_text(surprises, texts, [len(sample["token_ids"]) for sample in samples])

    return score


def _per_text(function: Callable[..., list[float]], *inputs: list[Any]) -> list[float | None]:
    """The function's values; where it refuses the lot, one by one with None where it refuses."""
    if not inputs[0]:
        return []
    try:
        return list(function(*inputs))
    except ArgsError:
        values: list[float | None] = []
        for single in zip(*inputs, strict=True):
            try:
                values += function(*([value] for value in single))
            except ArgsError:
                values.append(None)
        return values


def _function(run: Run, judge: Any) -> Scorer:
    function = judge.function()

    def score(samples: Sequence[Sample]) -> list[float | None]:
        prompts = [run.items[sample["index"]].text for sample in samples]
        responses = [sample["response"] for sample in samples]
        try:
            values = list(function(prompts, responses))
        except Exception as error:  # it is not ours, and may raise anything
            raise EvaluationError(
                f"the judge {judge.name} failed: {type(error).__name__}: {error}"
            ) from error
        if len(values) != len(samples):
            raise EvaluationError(
                f"the judge {judge.name} gave {len(values)} values for {len(samples)} responses; "
                "it must give one for each"
            )
        return values

    return score


def _coherence(run: Run) -> Scorer:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = Encoder(str(run.plan.encoder), pooling=run.plan.pooling, device=device)

    def score(samples: Sequence[Sample]) -> list[float | None]:
        prompts = [run.items[sample["index"]].text for sample in samples]
        responses = [cut_for_diversity(sample["response"]) for sample in samples]
        return list(encoder.coherence(prompts, responses))

    return score
