"""Direct preference optimisation of the tiny language model, by TRL's DPOTrainer.

A row of the paper's Table 4, in a minute or two: python examples/training/train_dpo.py
"""

from tiny import arguments, average_reward, language_model, pairs, report, trainer_options
from trl import DPOConfig, DPOTrainer


def main() -> None:
    given = arguments("dpo", __doc__, steps=60)
    lm, tokenizer = language_model()
    before = average_reward(lm, tokenizer, given.prompts)
    options = DPOConfig(**trainer_options(given.out, given.steps), learning_rate=2e-4, beta=0.1)
    data = pairs(16 * given.steps)
    trainer = DPOTrainer(lm, args=options, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    report(before, trainer.model, tokenizer, given.out, given.prompts)


if __name__ == "__main__":
    main()
