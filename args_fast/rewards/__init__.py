"""What can stand as the reward r."""

from args_fast.rewards.classifier import BranchedClassifier

__all__ = ["BranchedClassifier"]
