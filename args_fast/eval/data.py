"""Prompts to evaluate on: the paper's data sets, AlpacaEval, conversations and plain text.

Each kind reads a local file of the published schema, and what ``datasets`` can load where that
package is installed. A text stays a text and a conversation stays messages: no template is applied
here.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from args_fast.errors import EvaluationError
from args_fast.eval.rows import read_rows

Messages = list[dict[str, str]]
TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Item:
    """One prompt to answer.

    Attributes:
        id: what names it in its data set; its row number where nothing does.
        prompt: a text, or a conversation that ends with a user's turn.
    """

    id: str
    prompt: str | Messages

    @property
    def text(self) -> str:
        """The prompt as a reader of plain text sees it: judges, encoders, exports."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1:
            return self.prompt[0]["content"]
        turns = (f"{turn['role'].capitalize()}: {turn['content']}" for turn in self.prompt)
        return "\n\n".join(turns)


@dataclass(frozen=True)
class Kind:
    """One schema of prompts: where it is published, its fields, and the paper's rules for it."""

    hub: str | None
    split: str
    fields: tuple[str, ...]
    chat: bool
    cut: bool = False  # whether responses are cut at "human:" before they are rewarded
    reward_below: int | None = None  # tokens; longer texts are not rewarded, and counted


KINDS = {
    "hh": Kind("Dahoas/full-hh-rlhf", "test", ("prompt",), False, cut=True, reward_below=1334),
    "shp": Kind("stanfordnlp/SHP", "test", ("history", "post_id"), chat=False),
    "alpaca_eval": Kind("tatsu-lab/alpaca_eval", "eval", ("instruction",), chat=True),
    "chat": Kind(None, "train", ("messages",), chat=True),
    "text": Kind(None, "train", (), chat=False),
}


def load(source: str, *, split: str | None = None, chat: bool | None = None) -> list[Item]:
    """All prompts of a data set, in its order.

    Args:
        source: "KIND" for the published set, or "KIND:PATH" for a file, a folder or another hub id
            of the same schema; KIND is hh, shp, alpaca_eval, chat or text.
        split: of a set that ``datasets`` loads; None for the one that is published for tests.
        chat: True makes conversations of texts (HH's turns, else one user's turn), False texts of
            one-turn conversations, None keeps what the kind has.

    Raises:
        EvaluationError: the source cannot be read, or a row has not the fields of its kind.
    """
    name, _, path = source.partition(":")
    kind = kind_of(source)
    if not path and kind.hub is None:
        raise EvaluationError(f"{name} has no published set; give a file, such as {name}:FILE")
    rows = read_rows(path or str(kind.hub), split or kind.split)
    items = [item for item in _items(name, kind, rows) if item.prompt]
    if not items:
        raise EvaluationError(f"{source} has no prompts; give a source with at least one")
    return [Item(item.id, _as_chat(item, chat)) for item in items]


def kind_of(source: str) -> Kind:
    """The schema that a source names. Raises EvaluationError where there is no such kind."""
    name = source.partition(":")[0]
    if name not in KINDS:
        raise EvaluationError(
            f"data is {source!r}; it must be one of {', '.join(KINDS)}, or one of them with a file "
            "or hub id, such as hh:prompts.jsonl"
        )
    return KINDS[name]


def sample(
    items: list[Item], limit: int | None, seed: int, fits: Callable[[Item], bool]
) -> tuple[list[Item], int]:
    """The prompts to evaluate, and how many were passed over because they do not fit.

    Args:
        items: what ``load`` gave.
        limit: how many to draw by the seed; None takes all, in their order.
        seed: of the draw.
        fits: whether a prompt is short enough.
    """
    if limit is not None and limit < len(items):
        items = random.Random(seed).sample(items, len(items))
    chosen: list[Item] = []
    skipped = 0
    for item in items:
        if limit is not None and len(chosen) == limit:
            break
        if fits(item):
            chosen.append(item)
        else:
            skipped += 1
    return chosen, skipped


# ---- items ---------------------------------------------------------------------------------------


def _items(name: str, kind: Kind, rows: Iterable[Mapping[str, Any]]) -> list[Item]:
    items: list[Item] = []
    posts: set[str] = set()
    for number, row in enumerate(rows):
        if name == "chat" and "messages" not in row and isinstance(row.get("prompt"), list):
            row = {**row, "messages": row["prompt"]}
        fields = kind.fields or ("prompt",)
        missing = [field for field in fields if field not in row]
        if missing:
            raise EvaluationError(
                f"row {number} of the data has no {missing[0]!r}; {name} has the fields "
                f"{', '.join(fields)}, and this row has {', '.join(row)}"
            )
        if name == "shp":
            if row["post_id"] in posts:
                continue  # one prompt for each post
            posts.add(row["post_id"])
            prompt: Any = f" Human: {row['history']} Assistant: "
        elif name == "alpaca_eval":
            prompt = [{"role": "user", "content": row["instruction"]}]
        elif name == "chat":
            prompt = _conversation(row["messages"], number)
        else:
            prompt = row["prompt"]
        items.append(Item(str(row.get("id", row.get("post_id", number))), prompt))
    return items


def _conversation(messages: Any, number: int) -> Messages:
    """The messages up to the last user's turn: an answer at the end is not part of the prompt."""
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and turn.get("role")
        for turn in messages
    ):
        raise EvaluationError(
            f"row {number} of the data: messages must be a list of objects with role and content"
        )
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return turns


def _as_chat(item: Item, chat: bool | None) -> str | Messages:
    if chat is True and isinstance(item.prompt, str):
        return _turns(item.prompt)
    if chat is False and not isinstance(item.prompt, str):
        if len(item.prompt) > 1:
            raise EvaluationError(
                f"prompt {item.id} is a conversation of {len(item.prompt)} turns, which cannot be "
                "a text without a template; leave out --no-chat"
            )
        return item.prompt[0]["content"]
    return item.prompt


def _turns(text: str) -> Messages:
    """HH's "\\n\\nHuman: ... \\n\\nAssistant: ..." as messages; another text as one user's turn."""
    parts = TURN.split(text)
    if len(parts) == 1:
        return [{"role": "user", "content": text.strip()}]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    while turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns
