"""A judge that is no model and did not guide: for --judge-reward examples/eval/judges.py:upbeat."""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def upbeat(prompts: list[str], responses: list[str]) -> list[float]:
    """VADER's compound score of each response, -1 to 1 (pip install vaderSentiment)."""
    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(response)["compound"] for response in responses]
