"""The prompts of a run: chosen once, and kept in its folder."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from args_fast.errors import EvaluationError
from args_fast.eval import data
from args_fast.eval.data import Item
from args_fast.eval.plan import Pairs, Settings
from args_fast.eval.records import write_json


def choose(settings: Settings, file: Path, pairs: Pairs) -> tuple[list[Item], int]:
    """The prompts in a run's folder, else those that its settings draw, which are kept there; and
    how many were too long. Raises what ``draw`` raises."""
    if not file.exists():
        items, skipped = draw(settings, pairs)
        write_json(file, {"skipped": skipped, "prompts": [asdict(item) for item in items]})
    return kept_prompts(file)


def draw(settings: Settings, pairs: Pairs) -> tuple[list[Item], int]:
    """The prompts that settings ask for, and how many were passed over because they are too long.

    Raises:
        EvaluationError: the data cannot be read, or no prompt is short enough.
    """
    items = data.load(settings.data, split=settings.split, chat=settings.chat)
    tokenizer = pairs.get(settings.lm, settings.rm).tokenizer

    def fits(item: Item) -> bool:
        return count_tokens(tokenizer, item.prompt) <= settings.max_prompt_tokens

    chosen, skipped = data.sample(items, settings.limit, settings.seed, fits)
    if not chosen:
        raise EvaluationError(
            f"all {skipped} prompts are longer than {settings.max_prompt_tokens} tokens; raise "
            "--max-prompt-tokens"
        )
    return chosen, skipped


def kept_prompts(file: Path) -> tuple[list[Item], int]:
    """The prompts in a run's folder, and how many were too long.

    Raises:
        EvaluationError: the folder has no prompts.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return [Item(**item) for item in kept["prompts"]], kept["skipped"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EvaluationError(
            f"{file.parent} is not the folder of a run: its {file.name} cannot be read ({error})"
        ) from error


def count_tokens(tokenizer: Any, prompt: str | data.Messages) -> int:
    """How many tokens a prompt has.

    Raises:
        EvaluationError: there is no tokenizer, or no template for a conversation.
    """
    if tokenizer is None:
        raise EvaluationError(
            "the language model has no tokenizer; save one next to its weights to evaluate it"
        )
    if isinstance(prompt, str):
        return len(tokenizer(prompt).input_ids)
    if not tokenizer.chat_template:
        raise EvaluationError(
            "the prompts are conversations, but the language model's tokenizer has no chat "
            "template; add --no-chat"
        )
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def data_hash(items: list[Item]) -> str:
    """The sha256 of the prompts, in their order."""
    written = json.dumps([asdict(item) for item in items], ensure_ascii=False)
    return f"sha256:{hashlib.sha256(written.encode()).hexdigest()}"
