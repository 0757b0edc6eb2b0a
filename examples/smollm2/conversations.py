"""Human conversations, split, and what is taken from them: contexts to answer and pairs of replies.

The conversations are those of the package ``chitchat-dataset`` (MIT). Two people talk about an
opening question; many rated the conversation from 1 to 10 as witty, interesting and upbeat.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SEED = 20240117
SPLITS = {"train": 0.5, "judge": 0.3, "heldout": 0.2}
LIKED, DISLIKED = 8, 4  # mean of the three ratings: at least, at most
GAP = 0.5  # of the lexicon's scores, between the replies of a pair
WORDS_APART = 3  # between the replies of a pair, so that length is not what is learnt


@dataclass(frozen=True)
class Conversation:
    """question: the opening question; rating: mean of the three, None where not rated; turns: what
    was said, one text for all that one person wrote before the other did."""

    question: str | None
    rating: float | None
    turns: list[str]


@dataclass(frozen=True)
class Pair:
    """Two replies to one message. kind: who judged them, "raters" or "lexicon", or "samples" where
    the lexicon judged replies of the language model."""

    kind: str
    prompt: str
    chosen: str
    rejected: str
    chosen_ends: bool = True
    rejected_ends: bool = True


def load() -> dict[str, list[Conversation]]:
    """The conversations of each split, drawn by seed."""
    from chitchat_dataset import Dataset

    records = sorted(Dataset().items())
    random.Random(SEED).shuffle(records)
    splits, start = {}, 0
    for name, share in SPLITS.items():
        end = start + round(share * len(records))
        splits[name] = [_conversation(record) for _, record in records[start:end]]
        start = end
    return splits


def _conversation(record: dict) -> Conversation:
    ratings = [int(value) for value in record.get("ratings", {}).values()]
    turns = [" ".join(m["text"].strip() for m in turn) for turn in record["messages"]]
    rating = sum(ratings) / len(ratings) if ratings else None
    return Conversation(record.get("prompt"), rating, [" ".join(turn.split()) for turn in turns])


def contexts(conversations: list[Conversation], count: int, seen: set[str]) -> list[str]:
    """Messages to answer, 5 to 30 words long, one a conversation, none of which is in ``seen`` (to
    which they are added)."""
    draw = random.Random(SEED)
    chosen: list[str] = []
    for conversation in conversations:
        fitting = [turn for turn in conversation.turns if 5 <= _words(turn) <= 30]
        if len(chosen) < count and fitting:
            turn = draw.choice(fitting)
            if turn.lower() not in seen:
                seen.add(turn.lower())
                chosen.append(turn)
    return chosen


def rated_pairs(conversations: list[Conversation]) -> Iterator[Pair]:
    """Replies out of a liked and a disliked conversation on one opening question, of like length.
    Conversations that no one joined are left out: there was nothing to rate."""
    sides: dict[bool, dict[str, list[str]]] = {True: defaultdict(list), False: defaultdict(list)}
    for c in conversations:
        if not c.question or c.rating is None or len(c.turns) < 2:
            continue
        if c.rating >= LIKED or c.rating <= DISLIKED:
            fitting = [turn for turn in c.turns if 4 <= _words(turn) <= 30]
            sides[c.rating >= LIKED][c.question] += fitting
    for question, rejected in sorted(sides[False].items()):
        yield from _matched("raters", question, sides[True][question], rejected)


def lexicon_pairs(
    conversations: list[Conversation], score: Callable[[str], float]
) -> Iterator[Pair]:
    """Two people's answers to one opening question, of like length, that a lexicon tells apart."""
    answers: dict[str, list[str]] = defaultdict(list)
    for c in conversations:
        if c.question:
            answers[c.question] += [turn for turn in c.turns[:2] if 4 <= _words(turn) <= 30]
    for question, texts in sorted(answers.items()):
        for pair in _matched("lexicon", question, texts[::2], texts[1::2]):
            if judged := _by_score(pair, score):
                yield judged


def sampled_pairs(
    prompt: str, answers: list[tuple[str, bool]], score: Callable[[str], float]
) -> Iterator[Pair]:
    """Pairs of the language model's own answers that a lexicon tells apart: the outer two and the
    inner two of four. Each answer comes with whether it ended by itself."""
    ranked = sorted(answers, key=lambda answer: score(answer[0]))
    for low, high in zip(ranked, reversed(ranked[len(ranked) // 2 :]), strict=False):
        if score(high[0]) - score(low[0]) >= GAP:
            yield Pair("samples", prompt, high[0], low[0], high[1], low[1])


def _by_score(pair: Pair, score: Callable[[str], float]) -> Pair | None:
    difference = score(pair.chosen) - score(pair.rejected)
    if abs(difference) < GAP:
        return None
    if difference > 0:
        return pair
    return Pair(pair.kind, pair.prompt, chosen=pair.rejected, rejected=pair.chosen)


def _matched(kind: str, prompt: str, chosen: list[str], rejected: list[str]) -> Iterator[Pair]:
    """Every text of the second list with one of the first that is not used yet and as long."""
    free = random.Random(SEED).sample(chosen, len(chosen))
    for text in rejected:
        for index, candidate in enumerate(free):
            if abs(_words(candidate) - _words(text)) <= WORDS_APART:
                yield Pair(kind, prompt, chosen=free.pop(index), rejected=text)
                break


def _words(text: str) -> int:
    return len(text.split())
