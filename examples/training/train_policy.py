"""A policy trained by reinforcement from the tiny reward model, by TRL's GRPOTrainer.

The row that PPO has in the paper's Table 4. TRL no longer keeps a PPO trainer; GRPO takes the same
clipped steps, with the mean of a group of answers in place of a value model.
In a few minutes: python examples/training/train_policy.py
"""

from tiny import arguments, average_reward, language_model, pairs, report, reward_model
from tiny import trainer_options as shared
from trl import GRPOConfig, GRPOTrainer

GROUP = 8  # answers to a prompt


def main() -> None:
    given = arguments("policy", __doc__, steps=60)
    lm, tokenizer = language_model()
    before = average_reward(lm, tokenizer, given.prompts)
    options = GRPOConfig(
        **shared(given.out, given.steps),
        learning_rate=2e-4,
        beta=0.04,
        num_generations=GROUP,
        max_completion_length=64,
    )
    trainer = GRPOTrainer(
        lm,
        reward_funcs=reward_model(),
        args=options,
        train_dataset=pairs(16 * given.steps).select_columns("prompt"),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
    )
    trainer.train()
    report(before, trainer.model, tokenizer, given.out, given.prompts)


if __name__ == "__main__":
    main()
