"""A conversation in a reward model's own chat template: what comes before and after the answer."""

import warnings
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from args_fast.errors import PromptError

SENTINEL = "sentinel8f3a"  # stands for the answer; no template changes it
PROBES = (" a ", "\na\n", "<think>b</think>a")  # what templates rewrite


@dataclass(frozen=True)
class Rendering:
    """Ids before and after the response's ids."""

    prefix: list[int]
    closing: list[int]


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> Rendering:
    """The conversation with an answer to come, in the tokenizer's template.

    The prefix is what the template writes before an answer; where that is its generation prompt and
    white space, the generation prompt alone, since a response brings its own white space. Raises
    PromptError where the template refuses the conversation.
    """
    whole = _apply(tokenizer, [*messages, {"role": "assistant", "content": SENTINEL}])
    before, sentinel, after = whole.partition(SENTINEL)
    if not sentinel:
        raise PromptError(
            "the reward model's chat template does not write the assistant's last message; use "
            "template='plain', or another template"
        )
    asked = _apply(tokenizer, messages, add_generation_prompt=True)
    if before.startswith(asked) and not before[len(asked) :].strip():
        before = asked
    return Rendering(_ids(tokenizer, before), _ids(tokenizer, after))


def warn_of_rewriting(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Warn where the template changes an answer: rewards of ids do not follow that."""
    question = [{"role": "user", "content": "q"}]
    try:
        before, _, after = _apply(
            tokenizer, [*question, {"role": "assistant", "content": SENTINEL}]
        ).partition(SENTINEL)
        changed = [
            answer
            for answer in PROBES
            if _apply(tokenizer, [*question, {"role": "assistant", "content": answer}])
            != before + answer + after
        ]
    except PromptError:
        return
    if changed:
        warnings.warn(
            f"the chat template of the reward {name!r} rewrites answers such as {changed[0]!r} "
            "(trims them, or takes parts out); this reward reads the response as it is. "
            "rewards.Text(model, tokenizer, template='chat') follows the template to the letter, "
            "slower.",
            UserWarning,
            stacklevel=3,
        )


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template raises what it likes
        raise PromptError(
            f"the reward model's chat template refuses this conversation: {error}"
        ) from error
    assert isinstance(text, str)
    return text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []
