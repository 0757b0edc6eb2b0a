"""Where a response is cut before it is judged, by the rules of the paper's published scripts.

A model that was trained on dialogues may write the human's next turn itself. The scripts drop it,
for the reward by one rule and for the diversity by another.
"""

import re
from collections.abc import Sequence
from typing import Any

NEXT_HUMAN = re.compile("human:", re.IGNORECASE)
TURN_MARKS = ("###Human:", "\n\nHuman:")


def cut_for_reward(response: str) -> str:
    """The response up to the first "human:" in any case."""
    match = NEXT_HUMAN.search(response)
    return response[: match.start()] if match else response


def cut_for_diversity(response: str) -> str:
    """The response up to the first turn mark; one blank where nothing is left."""
    for mark in TURN_MARKS:
        response = response.partition(mark)[0]
    return response or " "


def keep_tokens(tokenizer: Any, token_ids: Sequence[int], text: str) -> list[int]:
    """The longest run of first tokens whose text lies within ``text``, a beginning of theirs.

    Args:
        tokenizer: of the language model.
        token_ids: the response as it was decoded.
        text: its text, or what a cut left of it.
    """
    if _decode(tokenizer, token_ids) == text:
        return list(token_ids)  # an end token, which has no text, stays
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(_decode(tokenizer, token_ids[:middle])) <= len(text):
            low = middle
        else:
            high = middle - 1
    return list(token_ids[:low])


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    return tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
