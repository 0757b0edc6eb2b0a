"""Policies for the real pair, the rows of Table 4 next to ARGS: SFT, DPO and GRPO, by TRL.

    python examples/smollm2/policies.py [--only dpo] [--out DIR] [--work DIR]

Each is a LoRA adapter of SmolLM2-135M-Instruct, for ``--method policy:path=DIR/dpo``. SFT and DPO
learn from the pairs of the language model's own answers that also taught the reward model, GRPO
from that reward model itself, all on the "train" conversations. Needs what train.py does, and takes
the samples in its work folder, or draws them first. TRL no longer keeps a PPO trainer: GRPO takes
PPO's clipped steps, with the mean reward of a group of answers in place of a value model.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import train  # isort: skip  # finds every_token for the others
import conversations
import reward
import samples
from every_token import token_rewards

from args_fast import smollm2
from args_fast.cli.console import quiet_transformers

LORA = LoraConfig(
    task_type="CAUSAL_LM",
    r=8,
    lora_alpha=16,
    target_modules=reward.LORA.target_modules,
    layers_to_transform=reward.LORA.layers_to_transform,
    layers_pattern="layers",
)
SHARED: dict[str, Any] = {
    "max_steps": 18,  # of 16 answers, or of 16 pairs: one epoch
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "cosine",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": conversations.SEED,
}
GROUP = 8  # answers to a prompt


class EncodedDPOTrainer(DPOTrainer):
    """DPOTrainer for data that is ids already: TRL would end the answers that were cut."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def sft(model: Any, tokenizer: Any, data: Dataset, out: Path) -> Any:
    """The likelihood of the preferred answers."""
    rows = [
        {"input_ids": p + c, "labels": [-100] * len(p) + c}
        for p, c in zip(data["prompt_ids"], data["chosen_ids"], strict=True)
    ]
    options = SFTConfig(str(out), learning_rate=5e-4, max_length=None, **SHARED)
    data = Dataset.from_list(rows)
    return SFTTrainer(
        model, options, train_dataset=data, processing_class=tokenizer, peft_config=LORA
    )


def dpo(model: Any, tokenizer: Any, data: Dataset, out: Path) -> Any:
    """Preferred answers over the others of their pairs."""
    options = DPOConfig(str(out), learning_rate=5e-4, beta=0.1, max_length=None, **SHARED)
    return EncodedDPOTrainer(
        model, args=options, train_dataset=data, processing_class=tokenizer, peft_config=LORA
    )


def grpo(model: Any, tokenizer: Any, data: Dataset, out: Path) -> Any:
    """The reward model's values of the policy's own answers."""
    rm = smollm2.reward_model().to(torch.bfloat16)
    rm.score.float()

    @torch.inference_mode()
    def rewards(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        texts = [tokenizer(p).input_ids + c for p, c in zip(prompts, completion_ids, strict=True)]
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
        along = token_rewards(rm, ids, mask)
        return [along[row, len(text) - 1].item() for row, text in enumerate(texts)]

    options = GRPOConfig(
        str(out),
        learning_rate=5e-4,
        beta=0.04,
        num_generations=GROUP,
        max_completion_length=samples.NEW_TOKENS,
        **SHARED,
    )
    prompts = Dataset.from_dict({"prompt": tokenizer.batch_decode(data["prompt_ids"][:])})
    return GRPOTrainer(
        model, rewards, options, train_dataset=prompts, processing_class=tokenizer, peft_config=LORA
    )


POLICIES: dict[str, Callable[[Any, Any, Dataset, Path], Any]] = {
    "sft": sft,
    "dpo": dpo,
    "grpo": grpo,
}


def pairs(lm: Path, tokenizer: Any, work: Path) -> Dataset:
    """The pairs of sampled answers of the "train" conversations, as ids."""
    split = conversations.load()["train"]
    prompts = {"train": conversations.contexts(split, train.PROMPTS["train"], set())}
    path = work / "samples-train.jsonl"
    if len(samples.read(path)) < len(prompts["train"]):
        model = AutoModelForCausalLM.from_pretrained(lm, dtype=train.DTYPE).eval()
        samples.write(model, tokenizer, prompts["train"], path)
    sampled = [p for p in train.make_pairs([], samples.read(path)) if p.kind == "samples"]
    encoded = reward.encode(tokenizer, sampled)

    def answers(row: dict) -> dict:
        start = row["prompt_tokens"]
        return {
            "prompt_ids": row["chosen_ids"][:start],
            "chosen_ids": row["chosen_ids"][start:],
            "rejected_ids": row["rejected_ids"][start:],
        }

    return encoded.map(answers, remove_columns="prompt_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--out", type=Path, default=Path("runs/policies"))
    parser.add_argument("--work", type=Path, default=train.ROOT / "build" / "smollm2")
    given = parser.parse_args()
    quiet_transformers()
    lm, tokenizer = smollm2.lm(), smollm2.tokenizer()
    data = pairs(lm, tokenizer, given.work)
    print(f"{len(data)} pairs", flush=True)
    for name in given.only:
        torch.manual_seed(conversations.SEED)
        began = time.process_time()
        model = AutoModelForCausalLM.from_pretrained(lm, dtype=train.DTYPE)
        trainer = POLICIES[name](model, tokenizer, data, given.out / name)
        trainer.train()
        trainer.model.save_pretrained(given.out / name)
        tokenizer.save_pretrained(given.out / name)
        minutes = (time.process_time() - began) / 60
        print(f"{name}: {minutes:.0f} processor minutes; a policy in {given.out / name}")


if __name__ == "__main__":
    main()
