"""Train a reward model for ARGS on preference data of the published schemas, by TRL.

    python examples/train_reward_model.py --model path/to/sft-model --data Dahoas/full-hh-rlhf \\
        --out path/to/reward-model
    python examples/train_reward_model.py --model facebook/opt-350m --data stanfordnlp/SHP --lora \\
        --out path/to/adapter

The paper (section 3.1) starts from the fine-tuned language model's weights, and takes the loss
-log sigmoid(r([x, y_w]) - r([x, y_l])) for one epoch; learning rate and batch size are ours, which
the paper does not state. --every-token takes the loss at every token of the answers and not at
their ends alone, so that rewards mean something for the unfinished texts that decoding asks about.

Data: a hub id, or a local .jsonl, .json, .csv or .parquet file with the columns of one of
- Dahoas/full-hh-rlhf: prompt, chosen, rejected
- stanfordnlp/SHP: history, human_ref_A, human_ref_B, labels
"""

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
HH = ("prompt", "chosen", "rejected")
SHP = ("history", "human_ref_A", "human_ref_B", "labels")


def main() -> None:
    given = arguments()
    try:
        from peft import LoraConfig
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed; run pip install 'args-fast[train]'")
    set_seed(given.seed)
    splits = load(given.data, given.heldout, given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        given.model, num_labels=1, dtype=given.dtype
    )
    options = RewardConfig(
        output_dir=str(given.out),
        num_train_epochs=given.epochs,
        max_steps=given.steps,
        per_device_train_batch_size=given.batch,
        learning_rate=given.learning_rate or (1e-4 if given.lora else 1e-5),
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_length=given.max_length,
        center_rewards_coefficient=0.01,
        bf16=given.dtype == "bfloat16",
        save_strategy="epoch",
        report_to="none",
        seed=given.seed,
    )
    trainer_class: Any = RewardTrainer
    if given.every_token:
        sys.path.append(str(HERE / "training"))
        from every_token import EveryTokenRewardTrainer as trainer_class
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=16,
        lora_alpha=32,
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    trainer = trainer_class(
        model,
        options,
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        processing_class=tokenizer,
        peft_config=lora if given.lora else None,
    )
    trainer.train()
    print(f"held-out accuracy: {trainer.evaluate()['eval_accuracy']:.4f}")
    trainer.save_model(given.out)
    print(f"a reward model for --rm: {given.out}")


def load(source: str, heldout: float, seed: int) -> Any:
    """Pairs as columns prompt, chosen, rejected, in splits "train" and "test"."""
    from datasets import load_dataset

    path = Path(source)
    if path.suffix in READERS:
        if not path.is_file():
            sys.exit(f"error: there is no file {source}")
        splits = load_dataset(READERS[path.suffix], data_files=source)
    else:
        splits = load_dataset(source)
    if "test" not in splits:
        splits = splits["train"].train_test_split(test_size=heldout, seed=seed)
    columns = splits["train"].column_names
    if set(HH) <= set(columns):
        return splits.select_columns(list(HH))
    if set(SHP) <= set(columns):
        return splits.map(_shp_pair, remove_columns=columns)
    sys.exit(
        f"error: {source} has the columns {', '.join(columns)}; pairs need {', '.join(HH)} or "
        f"{', '.join(SHP)}"
    )


def _shp_pair(row: dict) -> dict:
    """The prompt as the published script writes it; label 1 says that A is preferred."""
    replies = (f" {row['human_ref_A']}", f" {row['human_ref_B']}")
    chosen, rejected = replies if row["labels"] == 1 else reversed(replies)
    prompt = f" Human: {row['history']} Assistant:"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the fine-tuned language model: path or id")
    parser.add_argument("--data", required=True, help="a hub id or a local file")
    parser.add_argument("--out", required=True, type=Path, help="where the reward model is written")
    parser.add_argument("--lora", action="store_true", help="train a LoRA adapter with a head")
    parser.add_argument("--every-token", action="store_true", help="take the loss at every token")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many; -1: the epochs")
    parser.add_argument("--batch", type=int, default=8, help="pairs on a device")
    parser.add_argument("--learning-rate", type=float, help="1e-5, or 1e-4 with --lora")
    parser.add_argument(
        "--max-length", type=int, default=2048, help="tokens; longer pairs are left out"
    )
    parser.add_argument(
        "--heldout", type=float, default=0.02, help="share, where there is no test split"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
