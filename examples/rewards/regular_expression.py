"""A regular expression as a reward: python examples/rewards/regular_expression.py

Every match in the response costs one point. A reward judges responses that are not complete yet, so
a rule like this one has to make sense for the beginning of a text too.
"""

import argparse
import re

from args_fast.rewards import Function


class Penalty:
    """Minus the number of matches of a pattern in the response."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern, re.IGNORECASE)

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        return [-float(len(self.pattern.findall(response))) for response in responses]


reward = Function(Penalty(r"\b(you|your)\b"), name="no_you")

if __name__ == "__main__":
    from show import show

    argparse.ArgumentParser(description=__doc__).parse_args()
    show(reward, w=5.0)
