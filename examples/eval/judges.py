"""Lexicons as judges that did not guide: --judge-reward examples/eval/judges.py:upbeat."""

from functools import cache

from afinn import Afinn
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_afinn = cache(Afinn)


def upbeat(prompts: list[str], responses: list[str]) -> list[float]:
    """VADER's compound score of each response, -1 to 1 (pip install vaderSentiment)."""
    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(response)["compound"] for response in responses]


def valence(prompts: list[str], responses: list[str]) -> list[float]:
    """The mean AFINN valence of each response's words, -5 to 5 (pip install afinn)."""
    return [_afinn().score(response) / max(len(response.split()), 1) for response in responses]
