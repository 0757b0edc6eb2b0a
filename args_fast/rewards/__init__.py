"""What can stand as the reward r. One file per kind; README.md says how to add one."""

from args_fast.rewards.adapter import Adapter
from args_fast.rewards.base import Candidates, Choice, Judge, Reading, Reward
from args_fast.rewards.classifier import Classifier
from args_fast.rewards.function import Function
from args_fast.rewards.host import Exchange, HostReward
from args_fast.rewards.lm_head import Head
from args_fast.rewards.loading import load
from args_fast.rewards.mixture import Mixture
from args_fast.rewards.text import Text
from args_fast.rewards.vocabulary import Autoregressive, Vocabulary

KINDS: dict[str, type[Reward]] = {
    "adapter": Adapter,
    "autoregressive": Autoregressive,
    "classifier": Classifier,
    "head": Head,
    "function": Function,
    "text": Text,
    "vocabulary": Vocabulary,
}

__all__ = [
    "KINDS",
    "Adapter",
    "Autoregressive",
    "Candidates",
    "Choice",
    "Classifier",
    "Exchange",
    "Function",
    "Head",
    "HostReward",
    "Judge",
    "Mixture",
    "Reading",
    "Reward",
    "Text",
    "Vocabulary",
    "load",
]
