"""A corpus of short dialogues, each with a preferred and a dispreferred answer.

Made from the word lists beside this file. Preferred answers take the question up and give concrete
steps. Dispreferred ones evade, say nothing, repeat themselves or are rude; some begin well and then
drift. Questions are combinations of topic, subject and setting; a tenth of the combinations is held
out, so no held-out question was trained on.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOPICS: list[dict[str, Any]] = json.loads((HERE / "topics.json").read_text())
PHRASES: dict[str, Any] = json.loads((HERE / "phrases.json").read_text())


@dataclass(frozen=True)
class Dialogue:
    """question: what the human asks; chosen, rejected: the two answers."""

    question: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Goal:
    """One combination: a topic with its slots filled."""

    topic: dict[str, Any]
    x: str
    y: str

    def fill(self, text: str, *, asking: bool = False) -> str:
        """Fill the slots; the human's "my" is the assistant's "your"."""
        goal = self.topic["goal"].replace("{x}", self.x).replace("{y}", self.y)
        text = text.replace("{goal}", goal).replace("{x}", self.x)
        return text.replace("{my}", "my" if asking else "your")


def goals(*, heldout: bool, seed: int) -> list[Goal]:
    """All combinations of one side of the split, in a fixed order."""
    everything = [Goal(topic, x, y) for topic in TOPICS for x in topic["x"] for y in topic["y"]]
    random.Random(seed).shuffle(everything)
    cut = len(everything) // 10
    return everything[:cut] if heldout else everything[cut:]


def dialogues(count: int, *, heldout: bool, seed: int) -> Iterator[Dialogue]:
    """``count`` dialogues over the goals of one side, each goal about equally often."""
    draw = random.Random(seed + 1 + heldout)
    pool = goals(heldout=heldout, seed=seed)
    for i in range(count):
        goal = pool[i % len(pool)]
        situation = draw.choice(PHRASES["situations"]) if draw.random() < 0.4 else None
        question = goal.fill(draw.choice(PHRASES["questions"]), asking=True)
        if situation is not None:
            question = f"{question} {situation['asks']}"
        yield Dialogue(question, _chosen(goal, situation, draw), _rejected(goal, situation, draw))


def _chosen(goal: Goal, situation: dict[str, str] | None, draw: random.Random) -> str:
    steps = goal.topic["steps"]
    taken = [steps[i] for i in sorted(draw.sample(range(len(steps)), 3))]
    forms = ("first", "middle", "last")
    parts = [draw.choice(PHRASES["good_openers"])]
    if situation is not None and draw.random() < 0.7:
        parts.append(situation["reply"])
    parts += [
        draw.choice(PHRASES[form]).replace("{step}", step)
        for form, step in zip(forms, taken, strict=True)
    ]
    parts.append(draw.choice(goal.topic["tips"]))
    if draw.random() < 0.5:
        parts.append(draw.choice(PHRASES["closings"]))
    return " ".join(goal.fill(part) for part in parts)


def _rejected(goal: Goal, situation: dict[str, str] | None, draw: random.Random) -> str:
    kind = draw.choice(["evasive", "rude", "vague", "mixed", "repeat", "drift"])
    if kind == "drift":  # begins as a good answer, then gives up
        good = _chosen(goal, situation, draw).split(". ")
        parts = [". ".join(good[: draw.randint(1, 3)]) + "."]
    else:
        parts = [draw.choice(PHRASES["bad_openers"])]
    every = [PHRASES["evasive"], PHRASES["rude"], PHRASES["vague"]]
    sources = [PHRASES[kind]] if kind in PHRASES else [draw.choice(every) for _ in range(4)]
    for i in range(draw.randint(2, 4)):
        parts.append(draw.choice(sources[i % len(sources)]))
    if kind == "repeat":
        parts = parts[:2] + [parts[1]] * draw.randint(2, 3)
    return " ".join(goal.fill(part) for part in parts)


def prompt(question: str) -> str:
    """What the models read before the answer; the tokenizer's chat template renders the same."""
    return f"\n\nHuman: {question}\n\nAssistant:"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for dialogue in dialogues(5, heldout=False, seed=0):
        print(f"{prompt(dialogue.question)}\n  + {dialogue.chosen}\n  - {dialogue.rejected}")
