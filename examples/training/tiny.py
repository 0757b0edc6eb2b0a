"""What the small training runs share: the tiny pair, its corpus in TRL's columns, one measure."""

import argparse
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.tiny_pair import LM, RM

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples" / "tiny_pair"))

from corpus import dialogues, prompt  # noqa: E402

SEED = 20240117


def arguments(name: str, description: str, steps: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "training" / name)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--prompts", type=int, default=50, help="held-out prompts to measure on")
    return parser.parse_args()


def trainer_options(out: Path, steps: int) -> dict[str, Any]:
    """Options that the trainers' configurations share."""
    return {
        "output_dir": str(out),
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": SEED,
    }


def pairs(count: int, *, heldout: bool = False) -> Dataset:
    """Columns ``prompt``, ``chosen``, ``rejected``: the published schema of preference data."""
    rows = dialogues(count, heldout=heldout, seed=SEED)
    return Dataset.from_list(
        [
            {"prompt": prompt(d.question), "chosen": f" {d.chosen}", "rejected": f" {d.rejected}"}
            for d in rows
        ]
    )


def language_model() -> tuple[Any, Any]:
    """The tiny language model and its tokenizer, in float32."""
    lm = AutoModelForCausalLM.from_pretrained(LM, dtype="float32")
    return lm, AutoTokenizer.from_pretrained(LM)


def reward_model() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(RM, dtype="float32").eval()


def average_reward(lm: Any, tokenizer: Any, count: int) -> float:
    """Mean reward, by the tiny reward model, of a policy's greedy answers to held-out prompts."""
    decoder = ArgsDecoder(lm.eval(), reward_model(), tokenizer=tokenizer)
    prompts = pairs(count, heldout=True)["prompt"][:]
    results = decoder.generate(prompts, DecodingConfig(k=1, w=0.0, max_new_tokens=96))
    rewards = decoder.rewards(prompts, [result.token_ids for result in results])
    return sum(rewards) / len(rewards)


def report(before: float, lm: Any, tokenizer: Any, out: Path, count: int) -> None:
    """Save the policy and say what training changed."""
    after = average_reward(lm, tokenizer, count)
    lm.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(
        f"average reward of greedy answers, {count} held-out prompts: {before:+.3f} -> {after:+.3f}"
    )
    print(f"a policy for --lm: {out}")
