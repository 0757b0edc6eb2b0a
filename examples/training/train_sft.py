"""Supervised fine-tuning of the tiny language model on preferred answers, by TRL's SFTTrainer.

The paper's first stage (section 3.1), in a minute or two: python examples/training/train_sft.py
"""

from tiny import arguments, average_reward, language_model, pairs, report, trainer_options
from trl import SFTConfig, SFTTrainer


def main() -> None:
    given = arguments("sft", __doc__, steps=60)
    lm, tokenizer = language_model()
    before = average_reward(lm, tokenizer, given.prompts)
    data = pairs(16 * given.steps).rename_column("chosen", "completion").remove_columns("rejected")
    options = SFTConfig(**trainer_options(given.out, given.steps), learning_rate=5e-4)
    trainer = SFTTrainer(lm, options, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    report(before, trainer.model, tokenizer, given.out, given.prompts)


if __name__ == "__main__":
    main()
