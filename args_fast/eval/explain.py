"""What guidance did, token by token: one decode, or two side by side, as data and as one page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from math import isfinite
from typing import TYPE_CHECKING, Any

from args_fast.config import DecodingConfig
from args_fast.errors import EvaluationError
from args_fast.text import TextStream

if TYPE_CHECKING:
    from args_fast.decoder import ArgsDecoder
    from args_fast.generation import Candidate, Generation

Prompt = Any
PLACE = "/*DATA*/"


def explain(
    decoder: "ArgsDecoder", prompt: Prompt, config: DecodingConfig, *, compare: bool = True
) -> dict[str, Any]:
    """Decode a prompt and keep every step's candidates, as plain JSON values.

    Args:
        decoder: the pair of models; it needs a tokenizer.
        prompt: a text, a conversation or ids.
        config: the options; one sample.
        compare: decode greedily too. Greedy decoding does not ask for rewards; the curve of its
            rewards is computed afterwards.

    Returns:
        prompt, config, and for each decode its name, text, finish reason and steps. A step holds
        the text it added, the place of the candidate that was chosen, and the candidates from the
        likeliest down (so place 0 is what greedy decoding would have taken), each with its text,
        log-probability, reward and score. None stands for what was not asked for.

    Raises:
        EvaluationError: there is no tokenizer.
    """
    if decoder.tokenizer is None:
        raise EvaluationError(
            "a page needs text, and this language model has no tokenizer; save one next to its "
            "weights"
        )
    config = replace(config, num_return_sequences=1, return_candidates=True)
    decodes = [_decode(decoder, prompt, config, _name(config))]
    if compare and config.consults_reward:
        greedy = replace(config, w=0.0, temperature=None)
        decodes.insert(0, _decode(decoder, prompt, greedy, "greedy"))
    return {
        "prompt": _text(decoder, decodes[-1].pop("prompt_token_ids")),
        "config": {name: asdict(config)[name] for name in SHOWN},
        "decodes": [{k: v for k, v in d.items() if k != "prompt_token_ids"} for d in decodes],
    }


SHOWN = ("k", "w", "temperature", "max_new_tokens", "seed")


def page(explained: dict[str, Any]) -> str:
    """One HTML page that holds everything it shows: it opens from disk, without a network."""
    template = files("args_fast.eval").joinpath("explain.html").read_text(encoding="utf-8")
    # "<" could end the script element that the data stand in.
    data = json.dumps(explained, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    before, _, after = template.partition(PLACE)
    return before + data + after


def _name(config: DecodingConfig) -> str:
    if not config.consults_reward:
        return "greedy" if config.temperature is None or config.k == 1 else "sampling"
    return "ARGS" if config.temperature is None else "ARGS-stochastic"


def _decode(
    decoder: "ArgsDecoder", prompt: Prompt, config: DecodingConfig, name: str
) -> dict[str, Any]:
    (result,) = decoder.generate([prompt], config)
    if result.candidates is None:
        raise EvaluationError("the decoder reported no candidates")
    rewards: Sequence[float] = result.rewards
    if not config.consults_reward:
        rewards = decoder.token_rewards(prompt, result.token_ids)
    return {
        "name": name,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "steps": _steps(decoder, config, result, result.candidates, rewards),
        "prompt_token_ids": result.prompt_token_ids,
    }


def _steps(
    decoder: "ArgsDecoder",
    config: DecodingConfig,
    result: "Generation",
    candidates: Sequence[Sequence["Candidate"]],
    rewards: Sequence[float],
) -> list[dict[str, Any]]:
    stream = TextStream(decoder.tokenizer, config.stop)  # type: ignore[arg-type]
    steps = []
    for index, token in enumerate(result.token_ids):
        last = index + 1 == len(result.token_ids)
        stream.push(token, last=last)
        places = [candidate.token_id for candidate in candidates[index]]
        steps.append(
            {
                "text": stream.take(last=last),
                "token": _text(decoder, [token]),
                "chosen": places.index(token),
                "reward": _finite(rewards[index]),
                "candidates": [_candidate(decoder, candidate) for candidate in candidates[index]],
            }
        )
    return steps


def _candidate(decoder: "ArgsDecoder", candidate: "Candidate") -> dict[str, Any]:
    return {
        "id": candidate.token_id,
        "text": _text(decoder, [candidate.token_id]),
        "logprob": _finite(candidate.logprob),
        "reward": _finite(candidate.reward),
        "score": _finite(candidate.score),
    }


def _text(decoder: "ArgsDecoder", ids: Sequence[int]) -> str:
    """The ids as text, special tokens included: an end token is a candidate like any other."""
    tokenizer: Any = decoder.tokenizer
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _finite(value: float) -> float | None:
    return round(value, 6) if isfinite(value) else None
