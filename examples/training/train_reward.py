"""A reward model from the tiny language model's weights, by TRL's RewardTrainer.

The paper's second stage (section 3.1): the loss is -log sigmoid(r(x, y_w) - r(x, y_l)), here at
every token of the answers (every_token.py). In a minute or two:
python examples/training/train_reward.py
"""

from every_token import EveryTokenRewardTrainer
from tiny import SEED, arguments, pairs, trainer_options
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig

from args_fast.tiny_pair import LM


def main() -> None:
    given = arguments("reward", __doc__, steps=60)
    set_seed(SEED)  # of the new head
    tokenizer = AutoTokenizer.from_pretrained(LM)
    model = AutoModelForSequenceClassification.from_pretrained(LM, num_labels=1, dtype="float32")
    options = RewardConfig(
        **trainer_options(given.out, given.steps),
        learning_rate=3e-4,
        center_rewards_coefficient=0.01,
    )
    trainer = EveryTokenRewardTrainer(
        model,
        options,
        train_dataset=pairs(16 * given.steps),
        eval_dataset=pairs(given.prompts, heldout=True),
        processing_class=tokenizer,
    )
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    print(f"accuracy on {given.prompts} held-out pairs: {accuracy:.3f}")
    print(f"a reward model for --rm: {given.out}")


if __name__ == "__main__":
    main()
