"""Prompts and options, checked against the models once, become requests for the engine.

Text is never wrapped in a chat template, and a conversation always is: the same in Python, on the
command line, in batch jobs and in the server, because all of them come through here.
"""

import warnings
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from args_fast import prompts, templates
from args_fast.config import DecodingConfig, not_a_config
from args_fast.engine.request import ProcessLogits, Request
from args_fast.errors import ConfigError, PromptError
from args_fast.models.backbone import Backbone
from args_fast.models.pretrained import is_fault
from args_fast.prompts import Plain, Prompt
from args_fast.rewards.mixture import NamedRewards
from args_fast.text import TextStream, special_tokens

BARE_TEXT = (
    "the prompt is text, and text is decoded as it is, but this model has a chat template. To ask "
    "it as a user does, use decoder.chat(...), --chat on the command line, or messages in a line "
    "of a batch file."
)
Processing = Callable[[list[int], int, frozenset[int]], ProcessLogits | None]


@dataclass(frozen=True)
class Encoded:
    """One prompt as the models see it, and where it came from.

    Attributes:
        ids: its tokens.
        text: the text given, what the chat template made of the messages, or the ids decoded
            without special tokens; None for ids where there is no tokenizer.
        messages: the conversation, with plain text as content; None for text and ids.
    """

    ids: list[int]
    text: str | None
    messages: list[dict[str, Any]] | None


def check_tokenizer(tokenizer: object) -> None:
    """Raises ConfigError for a tokenizer's name in its place."""
    if isinstance(tokenizer, (str, Path)):
        raise ConfigError(
            f"tokenizer is {str(tokenizer)!r}; it must be the tokenizer itself: "
            f"AutoTokenizer.from_pretrained({str(tokenizer)!r})"
        )


class Encoder:
    """Checks and encodes prompts for one decoder.

    Args:
        lm: the language model.
        rewards: of the decoder, by name.
        tokenizer: the tokenizer of the language model; None for ids in, ids out.
        processing: (the prompt's ids, most new tokens, end tokens) -> what processes the logits
            of that request, if anything does.
    """

    def __init__(
        self,
        lm: Backbone,
        rewards: NamedRewards,
        tokenizer: PreTrainedTokenizerBase | None,
        processing: Processing | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._lm = lm
        self._rewards = rewards
        self._process_logits = processing or (lambda *_: None)
        self._has_warned = False

    def split(self, prompts_: Prompt | Many[Prompt]) -> list[Plain]:
        """One prompt or many -> a list of them. Raises PromptError where it is neither."""
        return prompts.split(prompts_, self._padding)

    def ids(self, prompt: Prompt) -> list[int]:
        """The token ids of one prompt. Raises PromptError."""
        return self.encode(prompt).ids

    def encode(self, prompt: Prompt) -> Encoded:
        """One prompt as tokens, text and messages. Raises PromptError."""
        plain = prompts.single(prompt, self._padding)
        if not plain:
            raise PromptError(f"the prompt {plain!r} is empty; give at least one token")
        if isinstance(plain, str):
            self._warn_of_bare(plain)
            encoded = Encoded(self._tokenize(plain), plain, None)
        elif prompts.is_conversation(plain):
            messages = templates.with_text(plain)
            text = templates.render(self._needed("messages"), messages)
            encoded = Encoded(self._tokenize(text, is_open=True), text, messages)
        else:
            ids = cast(list[int], plain)
            self.check(ids, "the prompt")
            return Encoded(ids, self._decode(ids), None)
        if not encoded.ids:
            raise PromptError(f"the prompt {plain!r} has no tokens; give at least one")
        self.check(encoded.ids, "the prompt")
        return encoded

    def check(self, ids: Many[int], name: str) -> list[int]:
        """The ids, once they are known to be in the vocabulary. Raises PromptError."""
        plain = prompts.ids(ids, name)
        for token in plain:
            if not 0 <= token < self._lm.vocabulary:
                raise PromptError(
                    f"{name} contains {token!r}, which is not a valid token id (valid: 0 to "
                    f"{self._lm.vocabulary - 1})"
                )
        return plain

    def requests(self, prompt: Prompt, config: DecodingConfig) -> list[Request]:
        """One request per sample of a prompt. Raises PromptError, ConfigError."""
        if not isinstance(config, DecodingConfig):
            raise not_a_config(config)
        encoded = self.encode(prompt)
        if config.k > self._lm.vocabulary:
            raise ConfigError(
                f"k is {config.k}, but the vocabulary has {self._lm.vocabulary} tokens; k can be "
                f"at most that"
            )
        stop, stop_tokens = self._stops(config)
        weights = self._weights(config)
        ends = self._end_tokens(config)
        return [
            Request(
                list(encoded.ids),
                sample,
                ends,
                None if self.tokenizer is None else TextStream(self.tokenizer, stop),
                weights=dict(weights),
                stop_tokens=stop_tokens,
                prompt_text=encoded.text,
                messages=encoded.messages,
                process_logits=self._process_logits(encoded.ids, sample.max_new_tokens, ends),
            )
            for sample in config.samples()
        ]

    @property
    def _padding(self) -> int | None:
        return None if self.tokenizer is None else self.tokenizer.pad_token_id

    def _needed(self, kind: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise PromptError(
                f"this decoder has no tokenizer, so prompts have to be lists of ids; pass "
                f"tokenizer= to decode {kind}, or save a tokenizer next to the model's weights"
            )
        return self.tokenizer

    def _tokenize(self, text: str, *, is_open: bool = False) -> list[int]:
        """The ids of a text, with what the tokenizer puts in front (BOS) once, also where the text
        begins with it.

        Args:
            text: of a prompt.
            is_open: leave out what the tokenizer would put after it, such as EOS.
        """
        tokenizer = self._needed("text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt is not Unicode text: {error.reason}") from error
        try:
            whole = tokenizer(text).input_ids
            bare = tokenizer(text, add_special_tokens=False).input_ids
        except BaseException as error:
            if not is_fault(error):
                raise
            raise PromptError(
                f"the tokenizer cannot encode the prompt ({type(error).__name__}: {error}); give "
                "other text, or its ids"
            ) from error
        for begin in range(len(whole) - len(bare) + 1):
            if whole[begin : begin + len(bare)] == bare:
                break
        else:
            return whole
        front = [] if bare[:begin] == whole[:begin] else whole[:begin]
        return [*front, *bare, *([] if is_open else whole[begin + len(bare) :])]

    def _decode(self, ids: list[int]) -> str | None:
        if self.tokenizer is None:
            return None
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _warn_of_bare(self, text: str) -> None:
        """Says once that a text is not wrapped, where it looks as if it should have been."""
        if self._has_warned or self.tokenizer is None or not self.tokenizer.chat_template:
            return
        if not templates.is_rendered(self.tokenizer, text):
            self._has_warned = True
            warnings.warn(BARE_TEXT, UserWarning, stacklevel=2)

    def _stops(self, config: DecodingConfig) -> tuple[list[str], frozenset[int]]:
        """The stop strings that are looked for in the text, and the ids of those that are special
        tokens, which have no text."""
        if not config.stop:
            return [], frozenset()
        if self.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer; this decoder has none")
        special = special_tokens(self.tokenizer)
        texts = [stop for stop in config.stop if stop not in special]
        for stop in texts:
            for token in special:
                if token in stop:
                    raise ConfigError(
                        f"stop is {stop!r}, which contains the special token {token}; a special "
                        f"token has no text, so use stop={token!r} alone"
                    )
        return texts, frozenset(special[stop] for stop in config.stop if stop in special)

    def _weights(self, config: DecodingConfig) -> dict[str, float]:
        """The weight of each reward that guides a request, by name. Raises ConfigError."""
        weights = self._rewards.weights(config.reward)
        return weights if config.consults_reward else {}

    def _end_tokens(self, config: DecodingConfig) -> frozenset[int]:
        if config.eos_token_ids is not None:
            return frozenset(config.eos_token_ids)
        generation = self._lm.model.generation_config
        eos: Any = (generation or self._lm.model.config).eos_token_id
        ends = [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]
        if not all(isinstance(end, int) for end in ends):
            raise ConfigError(
                f"eos_token_id is {eos!r} in the language model's generation_config.json; it must "
                "be a token id or several. Correct it, or pass eos_token_ids (--eos)"
            )
        return frozenset(ends)
