"""What can stand as the reward r. One file per kind; README.md says how to add one."""

from args_fast.rewards.base import Candidates, Choice, Judge, Reading, Reward
from args_fast.rewards.classifier import Classifier
from args_fast.rewards.host import HostReward, Text
from args_fast.rewards.lm_head import Head

KINDS: dict[str, type[Reward]] = {
    "classifier": Classifier,
    "head": Head,
}

__all__ = [
    "KINDS",
    "Candidates",
    "Choice",
    "Classifier",
    "Head",
    "HostReward",
    "Judge",
    "Reading",
    "Reward",
    "Text",
]
