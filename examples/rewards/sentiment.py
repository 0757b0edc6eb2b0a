"""A sentiment lexicon as a reward: python examples/rewards/sentiment.py

The reward is the mean sentiment of the response's words, between -1 and 1. Any lexicon will do;
this one fits on a page.
"""

import argparse
import re

from args_fast.rewards import Function

GOOD = ("good", "great", "best", "easy", "happy", "nice", "warm", "love", "fun", "bright", "lovely")
BAD = ("bad", "worst", "hard", "sad", "cold", "hate", "never", "wrong", "dirty", "tired", "harsh")
LEXICON = dict.fromkeys(GOOD, 1) | dict.fromkeys(BAD, -1)


def sentiment(prompts: list[str], responses: list[str]) -> list[float]:
    """One number per response."""
    words = [re.findall(r"[a-z']+", response.lower()) for response in responses]
    return [sum(LEXICON.get(word, 0) for word in text) / max(1, len(text)) for text in words]


reward = Function(sentiment)

if __name__ == "__main__":
    from show import show

    argparse.ArgumentParser(description=__doc__).parse_args()
    show(reward, w=20.0)
