"""Preference pairs out of conversations: who is preferred, of what length, and never one twice."""

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples" / "smollm2"))

from conversations import (
    GAP,
    WORDS_APART,
    Conversation,
    contexts,
    lexicon_pairs,
    rated_pairs,
    sampled_pairs,
)

QUESTIONS = ("Can computers fall in love?", "What superpower do you wish you had?")
WORDS = {"love": 0.6, "great": 0.3, "boring": -0.4, "hate": -0.6}


def score(text):
    """A lexicon of four words."""
    return sum(WORDS.get(word, 0) for word in text.split())


def text(draw):
    filler = [f"w{draw.randrange(10**6)}" for _ in range(draw.randint(2, 12))]
    return " ".join([*filler, draw.choice(list(WORDS))])


@pytest.fixture
def conversations():
    draw = random.Random(1)
    return [
        Conversation(
            question=draw.choice(QUESTIONS),
            rating=draw.choice([1.0, 4.0, 5.0, 8.0, 10.0, None]),
            turns=[text(draw) for _ in range(draw.randint(1, 6))],
        )
        for _ in range(200)
    ]


def test_rated_pairs_prefer_the_liked_conversation(conversations):
    ratings = {turn: c.rating for c in conversations for turn in c.turns}
    questions = {turn: c.question for c in conversations for turn in c.turns}
    pairs = list(rated_pairs(conversations))
    assert len(pairs) > 20
    for pair in pairs:
        assert ratings[pair.chosen] >= 8
        assert ratings[pair.rejected] <= 4
        assert questions[pair.chosen] == questions[pair.rejected] == pair.prompt
        assert abs(len(pair.chosen.split()) - len(pair.rejected.split())) <= WORDS_APART
    chosen = [pair.chosen for pair in pairs]
    assert len(set(chosen)) == len(chosen)


def test_rated_pairs_leave_out_conversations_nobody_joined():
    alone = Conversation(QUESTIONS[0], 1.0, ["I would say that they can"])
    liked = Conversation(QUESTIONS[0], 9.0, ["I would say that they cannot", "so would I you know"])
    assert list(rated_pairs([alone, liked])) == []


def test_lexicon_pairs_are_told_apart_by_the_lexicon(conversations):
    pairs = list(lexicon_pairs(conversations, score))
    assert len(pairs) > 10
    assert all(score(pair.chosen) - score(pair.rejected) >= GAP for pair in pairs)


def test_sampled_pairs_match_outer_and_inner_answers():
    answers = [("love love", True), ("love", False), ("boring", True), ("hate hate", False)]
    outer, inner = sampled_pairs("hi", answers, score)
    assert (outer.chosen, outer.rejected) == ("love love", "hate hate")
    assert (outer.chosen_ends, outer.rejected_ends) == (True, False)
    assert (inner.chosen, inner.rejected) == ("love", "boring")
    assert list(sampled_pairs("hi", [("love", True)] * 4, score)) == []


def test_contexts_are_of_one_split_only(conversations):
    seen = set()
    first = contexts(conversations[:100], 30, seen)
    again = contexts(conversations[:100], 100, seen)
    assert len(first) == 30
    assert not {turn.lower() for turn in first} & {turn.lower() for turn in again}
    assert all(5 <= len(turn.split()) <= 30 for turn in first)
