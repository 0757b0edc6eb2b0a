"""Any sequence classifier with any tokenizer, decoder or encoder, as a reward of strings."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import quantization
from args_fast.errors import (
    ConfigError,
    LengthError,
    ProofError,
    RewardError,
    UnsupportedModelError,
)
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.storage import GroupCache
from args_fast.models.backbone import Backbone
from args_fast.models.compact import weights_of
from args_fast.models.fused import Fused
from args_fast.models.proof import prove
from args_fast.rewards.base import Reading
from args_fast.rewards.cached_texts import CachedTexts
from args_fast.rewards.heads import HeadLike, Labels, find_head
from args_fast.rewards.host import Exchange, HostJudge, HostReward
from args_fast.rewards.strings import Encoded, Template, TextEncoder, TooLong
from args_fast.rewards.whole_texts import WholeTexts

# Read at ``attach``, to prove that batches and the cache give what the model gives a text alone.
PROBES = (
    ("What is 2 + 2?", " 4"),
    ("Hi", ""),
    ("Tell me about the sea, and the birds over it.", " It is wide. It is blue, too;\nand cold."),
)


class Text(HostReward):
    """A sequence classifier that reads strings: r is what its own forward returns on the text.

    What it reads: "plain", ``tokenizer(prompt + response)``; "pair", ``tokenizer(prompt,
    response)``; "chat", its own rendering of the conversation with the response as the assistant's
    last turn. A decoder model keeps the K/V of the longest common prefix of a request's texts; an
    encoder reads distinct texts in batches.

    Args:
        model: a ``*ForSequenceClassification`` of transformers, or the like; put in eval mode.
        tokenizer: the model's own.
        name: by which requests name it; the model's folder or class by default.
        template: what is read; "auto" is "chat" for conversations where the tokenizer has a
            template, else "plain".
        too_long: "error" ends a request whose text is longer than the model takes with a
            LengthError; "left" drops the oldest ids of the text (of the prompt, for "pair").
        head: a dotted name of a module of the model, a module, or a safetensors file; None for what
            the model's class does itself.
        labels: of a model with several outputs, the index or name of the one that is the reward, or
            the weight of each label.

    Attributes:
        cached: whether texts share K/V; known after ``attach``.

    Raises:
        RewardHeadError: the model gives no reward, or several without ``labels``.
        ConfigError: an argument is outside its range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        template: Template = "auto",
        too_long: TooLong = "error",
        head: HeadLike = None,
        labels: Labels = None,
    ) -> None:
        if not isinstance(model, PreTrainedModel):
            raise UnsupportedModelError(
                f"the reward model is a {type(model).__name__}; Text takes a model of "
                "transformers. For anything else use rewards.Function"
            )
        model.eval()  # dropout would make every reward a lottery
        self.name = name or Path(model.name_or_path or "").name or type(model).__name__
        self.model = model
        self.device = model.device
        self._segments = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
        self.encoder = TextEncoder(
            tokenizer,
            self.name,
            template=template,
            too_long=too_long,
            max_length=max_length(model),
            segments=self._segments,
        )
        embeddings: Any = model.get_input_embeddings()
        self._rows: int = embeddings.num_embeddings
        pad = getattr(tokenizer, "pad_token_id", None) or 0
        self._whole = WholeTexts(model, head, labels, pad if pad < self._rows else 0)
        self._head, self._labels = head, labels
        self._cached: CachedTexts | None = None

    @property
    def cached(self) -> bool:
        return self._cached is not None

    # ---- with the language model ---------------------------------------------------------------

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().attach(lm, tokenizer)
        assert tokenizer is not None  # super().attach has seen to it
        # An id without a token has no text that this model could read.
        tokens = set(tokenizer.get_vocab().values())
        self._known = torch.tensor([id in tokens for id in range(lm.vocabulary)], device="cpu")
        self.encoder.name = self.name  # a decoder may have named it
        texts = self._probes()
        self._cached = self._prove_cache(texts, lm.fused)
        if self._cached is None:
            self._whole.prove(texts)

    def _probes(self) -> list[Encoded]:
        """Those of the probes that the model can read."""
        texts = []
        for prompt, response in PROBES:
            messages = (("user", prompt),) if self.encoder.template == "chat" else None
            with suppress(LengthError, RewardError):
                texts += self.encode([Exchange(prompt, response, messages)])
        return texts

    def _prove_cache(self, texts: Sequence[Encoded], fused: Fused) -> CachedTexts | None:
        """A cache for a decoder model whose reward is its head at the last token; None for a model
        of another kind, whose texts are read whole."""
        if self._segments or not texts or getattr(self.model.config, "is_encoder_decoder", False):
            return None
        try:
            backbone = Backbone(self.model, "reward model", fused=fused)
            if backbone.max_length < self.encoder.max_length:
                return None  # later tokens change what earlier ones have stored
            prove(backbone, logits=False)
            cached = CachedTexts(backbone, find_head(self.model, self._head, self._labels))
        except (UnsupportedModelError, ProofError):
            return None
        alone = self._whole.values(texts, "of one")
        together = cached.values({0: [text.ids for text in texts]})[0]
        cached.drop(0)
        return cached if all(map(self._whole.agree, together, alone)) else None

    def prepare(self, kind: str | None) -> None:
        """What is done to a model that args-fast has loaded; ``kind``: of quantization."""
        quantization.prepare(self.model, kind)

    def known_ids(self) -> Tensor | None:
        return None if bool(self._known.all()) else self._known

    def weights(self) -> Iterable[Tensor]:
        return weights_of(self.model)

    # ---- one request ---------------------------------------------------------------------------

    def check(self, request: Reading, new_tokens: int) -> None:
        if self.model.training:
            raise ConfigError(
                f"the reward {self.name!r} is in training mode, so its outputs are random; call "
                ".eval()"
            )
        self.encoder.encode([self.text_of(request, [])])

    def close(self, request: Reading) -> None:
        if self._cached is not None:
            self._cached.drop(id(request))

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> HostJudge:
        if self._cached is None:
            return HostJudge(self, memory)
        return CachedJudge(self, self._cached, memory)

    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        texts = [self.text_of(request, continuation[: i + 1]) for i in range(len(continuation))]
        if self._cached is None:
            return self.checked(texts)
        key, values = object(), []
        try:  # one after the other: each is mostly the prefix of the next
            for text in texts:
                ids = self.encode([text])[0].ids
                values += self._cached.values({key: [ids]})[key]
                self._cached.keep(key, ids)
        finally:
            self._cached.drop(key)
        return self.numbers(values, texts)

    def values(self, texts: Sequence[Exchange]) -> list[float]:
        return self._whole.values(self.encode(texts))

    def encode(self, texts: Sequence[Exchange]) -> list[Encoded]:
        """The ids of texts that the model can read. Raises LengthError, RewardError."""
        encoded = self.encoder.encode(texts)
        for text in encoded:
            if not text.ids:
                raise RewardError(
                    f"the reward {self.name!r} has nothing to read: its tokenizer gives no tokens "
                    "for this text. Give a longer prompt, or a tokenizer that adds special tokens."
                )
            if max(text.ids) >= self._rows:
                raise RewardError(
                    f"the tokenizer of the reward {self.name!r} gives the id {max(text.ids)}, and "
                    f"the model has embeddings for {self._rows}; use the tokenizer that it was "
                    "trained with"
                )
        return encoded


class CachedJudge(HostJudge):
    """Reads candidates through the cache, and stores the one that was chosen."""

    def __init__(self, reward: Text, cached: CachedTexts, memory: BatchMemory) -> None:
        super().__init__(reward, memory)
        self._text = reward
        self._cached = cached
        self._ids: dict[int, list[tuple[int, ...]]] = {}

    def together(
        self, requests: Sequence[Reading], rows: Sequence[Sequence[Exchange]]
    ) -> list[list[float]]:
        distinct = list(dict.fromkeys(text for texts in rows for text in texts))
        by_text = dict(zip(distinct, self._text.encode(distinct), strict=True))
        keys = [id(request) for request in requests]
        ids = {key: [by_text[t].ids for t in texts] for key, texts in zip(keys, rows, strict=True)}
        values = self._cached.values(ids)
        self._ids |= ids
        return [
            self._text.numbers(values[key], texts) for key, texts in zip(keys, rows, strict=True)
        ]

    def keep(self, branch: Tensor) -> None:
        for request, j in zip(self._requests, branch.tolist(), strict=False):
            ids = self._ids.pop(id(request), None)
            if ids is not None:
                self._cached.keep(id(request), ids[j])


def max_length(model: PreTrainedModel) -> float:
    """Tokens that a model was made for."""
    config = model.config.get_text_config()
    limit: float = getattr(config, "max_position_embeddings", None) or math.inf
    for name, module in model.named_modules():
        # RoBERTa and its kind count positions from the padding id on.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - first)
    return limit
