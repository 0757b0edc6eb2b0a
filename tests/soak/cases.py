"""What the soak asks for, what must come of it alone, and requests that must be refused."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from models import NAME

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.tiny_pair import HELDOUT

REWARDS = (
    "helpful",
    "helpful",
    "brief",
    "fluent",
    "text",
    {"helpful": 1.0, "brief": 0.5},
    {"text": 0.7, "fluent": 0.2},
)
TIE = 1e-4  # scores closer than this may go either way in float32

REFUSED: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("/v1/completions", {}, 400),
    ("/v1/completions", {"prompt": ""}, 400),
    ("/v1/completions", {"prompt": [70000]}, 400),
    ("/v1/completions", {"prompt": "a", "max_tokens": 100_000}, 400),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"5": 1}}, 400),
    ("/v1/completions", {"prompt": "a", "n": 99}, 400),
    ("/v1/completions", {"prompt": "a", "args": {"k": 0}}, 400),
    ("/v1/completions", {"prompt": "a", "args": {"reward": "none"}}, 400),
    ("/v1/completions", {"prompt": "a", "args": {"unknown": 1}}, 400),
    ("/v1/completions", {"prompt": "a" * 70_000}, 413),
    ("/v1/completions", {"prompt": "a", "model": "another"}, 404),
    ("/v1/chat/completions", {"messages": []}, 400),
    ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, 400),
    ("/v1/nothing", {}, 404),
)


@dataclass
class Case:
    """One request and its answer.

    Attributes:
        path, body: of the request.
        expected: (ids, text, finish reason in OpenAI's words) of each answer, decoded alone.
        ties: whether some step's two best candidates are too close to tell apart.
    """

    path: str
    body: dict[str, Any]
    expected: list[tuple[list[int], str, str]] = field(default_factory=list)
    ties: bool = False


def draw(rng: random.Random, prompts: list[str]) -> Case:
    """A request of any size and any options."""
    new = rng.choice((1, 3, 8, 16, 16, 32, 64))
    body: dict[str, Any] = {"model": NAME, "max_tokens": new, "seed": rng.randrange(2**32)}
    body["args"] = {
        "k": rng.choice((1, 3, 10, 10, 20)),
        "w": rng.choice((0.0, 0.5, 1.5, 3.0)),
        "reward": rng.choice(REWARDS),
    }
    if rng.random() < 0.4:
        body["temperature"] = rng.choice((0.5, 0.9))
        body["n"] = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.2:
        body["stop"] = [".", " the"]
    if rng.random() < 0.2:
        body["ignore_eos"] = True
    prompt = rng.choice(prompts) * rng.choice((1, 1, 1, 2, 6))
    if rng.random() < 0.5:
        message = prompt.replace("\n\nHuman: ", "").replace("\n\nAssistant:", " ")
        messages = [{"role": "user", "content": message[: rng.choice((20, 200, 600))]}]
        return Case("/v1/chat/completions", body | {"messages": messages})
    if rng.random() < 0.3:
        ids = [rng.randrange(2, 1500) for _ in range(rng.choice((1, 15, 16, 17, 200)))]
        return Case("/v1/completions", body | {"prompt": ids})
    return Case("/v1/completions", body | {"prompt": prompt[: rng.choice((5, 50, 900))]})


def make_cases(count: int, seed: int, decoder: ArgsDecoder) -> list[Case]:
    """Distinct requests, each decoded alone."""
    rng = random.Random(seed)
    lines = HELDOUT.read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    cases = [draw(rng, prompts) for _ in range(count)]
    for case in cases:
        decode_alone(case, decoder)
    return cases


def decode_alone(case: Case, decoder: ArgsDecoder) -> None:
    """Fill in what must come of a case."""
    body = case.body
    config = DecodingConfig(
        **body["args"],
        max_new_tokens=body["max_tokens"],
        temperature=body.get("temperature"),
        seed=body["seed"],
        stop=body.get("stop", ()),
        num_return_sequences=body.get("n", 1),
        eos_token_ids=() if body.get("ignore_eos") else None,
        return_candidates=True,
    )
    prompt = body.get("messages", body.get("prompt"))
    for single in config.samples():
        (result,) = decoder.generate(prompt, single)
        reason = "length" if result.finish_reason == "length" else "stop"
        case.expected.append((result.token_ids, result.text or "", reason))
        case.ties |= _closest(result, single) < TIE


def _closest(result: Any, config: DecodingConfig) -> float:
    """The smallest difference between the two best candidates of a step."""
    smallest, noise = float("inf"), config.noise()
    for step, candidates in enumerate(result.candidates):
        if len(candidates) < 2:
            continue
        rewards = [0.0 if c.reward != c.reward else c.reward for c in candidates]  # NaN: w is 0
        scores = torch.tensor([c.logprob for c in candidates]) + config.w * torch.tensor(rewards)
        scores = scores / (config.temperature or 1.0) + noise[step, : len(candidates)]
        best, second = scores.topk(2).values.tolist()
        smallest = min(smallest, best - second)
    return smallest
