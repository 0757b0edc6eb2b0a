"""What a text reward reads: strings to ids, through its own template, cut where too long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from args_fast.errors import ConfigError, LengthError, PromptError
from args_fast.rewards.host import Exchange

TEMPLATES = ("auto", "chat", "plain", "pair")
Template = Literal["auto", "chat", "plain", "pair"]
TooLong = Literal["error", "left"]


@dataclass(frozen=True)
class Encoded:
    """A text as its tokenizer gives it: ids, and their segments where the model reads those."""

    ids: tuple[int, ...]
    segments: tuple[int, ...] | None = None


class TextEncoder:
    """Strings to the ids that one reward reads.

    Args:
        tokenizer: the reward's own.
        name: of the reward, for messages.
        template, too_long: as for ``Text``.
        max_length: ids of a text at most.
        segments: whether the model reads them.

    Raises:
        ConfigError: an argument is outside its range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        template: Template,
        too_long: TooLong,
        max_length: float,
        segments: bool,
    ) -> None:
        _check_options(tokenizer, template, too_long)
        self.tokenizer = tokenizer
        self.name = name
        self.template = template
        self.too_long = too_long
        self.max_length = max_length
        self._segments = segments

    def encode(self, texts: Sequence[Exchange]) -> list[Encoded]:
        """What the model reads of each text. Raises LengthError, PromptError."""
        encoded: dict[int, Encoded] = {}
        by_template: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            by_template.setdefault(self._template_of(text), []).append(i)
        for template, indices in by_template.items():
            batch = self._tokenize(template, [texts[i] for i in indices])
            segments = batch.get("token_type_ids") if self._segments else None
            for row, i in enumerate(indices):
                ids = batch["input_ids"][row]
                of_text = None if segments is None else segments[row]
                if len(ids) > self.max_length:
                    kept = self._shortened(batch, row, template)
                    ids = [ids[j] for j in kept]
                    of_text = of_text and [of_text[j] for j in kept]
                encoded[i] = Encoded(tuple(ids), None if of_text is None else tuple(of_text))
        return [encoded[i] for i in range(len(texts))]

    def _template_of(self, text: Exchange) -> str:
        has_template = bool(self.tokenizer.chat_template)
        if self.template == "auto":
            return "chat" if has_template and text.messages is not None else "plain"
        if self.template == "chat" and text.messages is None:
            raise PromptError(
                f"the reward {self.name!r} has template='chat', and the prompt is not a "
                "conversation; use decoder.chat(...), or template='auto'"
            )
        if self.template == "pair" and not text.response:
            return "plain"  # tokenizer(prompt, "") reads the prompt alone; in a batch it would not
        return self.template

    def _tokenize(self, template: str, texts: Sequence[Exchange]) -> Any:
        options: dict[str, Any] = {"return_special_tokens_mask": True, "verbose": False}
        if template == "pair":
            prompts = [text.prompt for text in texts]
            return self.tokenizer(prompts, [text.response for text in texts], **options)
        if template == "plain":
            return self.tokenizer([text.prompt + text.response for text in texts], **options)
        rendered = [self._render(text) for text in texts]  # the template wrote the special tokens
        return self.tokenizer(rendered, add_special_tokens=False, **options)

    def _render(self, text: Exchange) -> str:
        messages = text.as_messages() or []
        turn = {"role": "assistant", "content": text.response}
        if messages and messages[-1]["role"] == "assistant":  # the response continues it
            turn["content"] = messages.pop()["content"] + text.response
        try:
            rendered = self.tokenizer.apply_chat_template([*messages, turn], tokenize=False)
        except Exception as error:  # a template raises what it likes
            raise PromptError(
                f"the chat template of the reward {self.name!r} refuses this conversation: {error}"
            ) from error
        assert isinstance(rendered, str)
        return rendered

    def _shortened(self, batch: Any, row: int, template: str) -> list[int]:
        """The places of the ids that remain of a text that is too long."""
        length = len(batch["input_ids"][row])
        excess = int(length - self.max_length)
        left = self.too_long == "left"
        if left:
            if template == "pair":
                oldest = [j for j, part in enumerate(batch.sequence_ids(row)) if part == 0]
            else:
                special = batch["special_tokens_mask"][row]
                oldest = [j for j in range(length) if not special[j]][:-1]
            if excess <= len(oldest):
                dropped = set(oldest[:excess])
                return [j for j in range(length) if j not in dropped]
        hint = " or" if left else ", use too_long='left' to drop the oldest text, or"
        raise LengthError(
            f"the text has {length} tokens for the reward {self.name!r}, which takes "
            f"{self.max_length:.0f}. Shorten the prompt{hint} set max_new_tokens lower."
        )


def _check_options(tokenizer: Any, template: str, too_long: str) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"the reward's tokenizer is a {type(tokenizer).__name__}; load the one next to its "
            "weights with AutoTokenizer.from_pretrained"
        )
    if template not in TEMPLATES:
        raise ConfigError(f"template is {template!r}; it must be one of {', '.join(TEMPLATES)}")
    if template == "chat" and not tokenizer.chat_template:
        raise ConfigError(
            "template is 'chat', and the reward's tokenizer has no chat template; set "
            "tokenizer.chat_template, or use template='plain'"
        )
    if too_long not in ("error", "left"):
        raise ConfigError(f"too_long is {too_long!r}; it must be 'error' or 'left'")
    if too_long == "left" and template == "pair" and not tokenizer.is_fast:
        raise ConfigError("too_long='left' with template='pair' needs a fast tokenizer")
