"""A reward model that is a decoder with a head, read at the candidate itself."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import quantization
from args_fast.errors import (
    ConfigError,
    LengthError,
    PairMismatchError,
    PromptError,
    RewardHeadError,
)
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.pages import PagedText
from args_fast.kvcache.storage import GroupCache
from args_fast.models.backbone import Backbone, check_eval
from args_fast.models.compact import weights_of
from args_fast.models.proof import prove, prove_reward
from args_fast.rewards.base import Judge, Reading, Reward
from args_fast.rewards.chains import ChainJudge, SiblingJudge
from args_fast.rewards.heads import HeadLike, Labels, find_head
from args_fast.rewards.rendering import Rendering, render, warn_of_rewriting

Template = Literal["auto", "chat", "plain"]
AT_ONCE = 16  # finished texts that are read in one pass


class Classifier(Reward):
    """A decoder model with a head that reads the language model's ids.

    Its own forward pools "the last token that is not padding", which scores a candidate EOS as
    r([x]) wherever pad and EOS share an id. Here the head is applied to the candidate's own hidden
    state, or to that of the last closing id after it. The candidates are branches over one stored
    prefix.

    What it reads: prompt ids + response ids + closing ids. For a conversation, with a template at
    hand, prompt and closing ids are the reward's own rendering of it.

    Args:
        model: the reward model; put in eval mode.
        tokenizer: the reward model's, for its chat template; None reads the language model's ids.
        name: by which requests name it; the model's folder or class by default.
        template: "chat" renders conversations and refuses other prompts, "plain" never renders,
            "auto" renders conversations where the tokenizer has a template.
        closing_ids: ids after every candidate, in place of those of the template.
        head: a dotted name of a module of the model, a module, or a safetensors file; None for the
            head that the model's class uses.
        labels: of a head with several outputs, the one that is the reward, or the label weights.

        known: [V] bool, which of the language model's ids mean anything to this model; the others
            are not candidates. None for all.

    Raises:
        RewardHeadError: there is no head, or it has several outputs and ``labels`` is None; when
            attached, the model's own forward gives something else than its head.
        UnsupportedModelError: the engine cannot drive the model.
        ConfigError: an argument is outside its range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str | None = None,
        template: Template = "auto",
        closing_ids: Sequence[int] | None = None,
        head: HeadLike = None,
        labels: Labels = None,
        known: Tensor | None = None,
    ) -> None:
        if isinstance(model, nn.Module):
            model.eval()  # dropout would make every reward a lottery
        if template not in ("auto", "chat", "plain"):
            raise ConfigError(f"template is {template!r}; it must be 'auto', 'chat' or 'plain'")
        has_template = tokenizer is not None and bool(tokenizer.chat_template)
        if template == "chat" and not has_template:
            raise ConfigError(
                "template is 'chat', and the reward has no tokenizer with a chat template; pass "
                "tokenizer="
            )
        folder = Path(getattr(model, "name_or_path", None) or "").name
        self.name = name or folder or type(model).__name__
        self.model = model
        self._known = known
        self.backbone = Backbone(model, "reward model")
        self.device = self.backbone.device
        self.layout = self.backbone.layout
        self.head = find_head(model, head, labels)
        self.template = template
        self.own_ids = has_template and template != "plain"
        self._tokenizer = tokenizer if self.own_ids else None
        self._closing_ids = None if closing_ids is None else list(closing_ids)
        self.closings = self._most_closings()
        self.rows_per_candidate = 1 + self.closings

    def _most_closings(self) -> int:
        if self._closing_ids is not None:
            return len(self._closing_ids)
        if self._tokenizer is None:
            return 0
        warn_of_rewriting(self._tokenizer, self.name)
        return len(render(self._tokenizer, [{"role": "user", "content": "q"}]).closing)

    # ---- with the language model ---------------------------------------------------------------

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self.device.type != lm.device.type:
            raise PairMismatchError(
                f"the language model is on {lm.device} and the reward model on {self.device}; move "
                "both to one device, or to two CUDA devices"
            )
        if self._known is not None:
            padding = torch.zeros(
                max(0, lm.vocabulary - len(self._known)), dtype=torch.bool, device="cpu"
            )
            self._known = torch.cat([self._known, padding])[: lm.vocabulary]
        elif self.backbone.vocabulary < lm.vocabulary:
            raise PairMismatchError(
                f"the language model can choose among {lm.vocabulary} ids, but the reward model "
                f"has embeddings for {self.backbone.vocabulary}; use a pair that shares one "
                f"vocabulary, or rm.resize_token_embeddings({lm.vocabulary}) if the ids beyond are "
                "padding"
            )
        self.backbone.fused = lm.fused
        prove(self.backbone, logits=False)
        if self.head.own and self.model.get_output_embeddings() is None:
            rewards = lambda texts: [self._reward(text) for text in texts]  # noqa: E731
            prove_reward(self.backbone, rewards, self.head.fold)

    def compile(self, mode: str) -> None:
        self.backbone.compile(mode)
        prove(self.backbone, logits=False)  # again, as compiled: a compiler can be wrong too

    def prepare(self, kind: str | None) -> None:
        """What is done to a model that args-fast has loaded; ``kind``: of quantization."""
        quantization.prepare(self.model, kind)

    def whole_model(self) -> PreTrainedModel:
        """A model whose own forward gives this reward."""
        return self.model

    def known_ids(self) -> Tensor | None:
        return None if self._known is None or bool(self._known.all()) else self._known

    def weights(self) -> Iterable[Tensor]:
        return weights_of(self.model)

    # ---- one request ---------------------------------------------------------------------------

    def rendering(self, request: Reading) -> Rendering:
        """What it reads before and after a request's response."""
        if self._tokenizer is not None and request.messages is not None:
            rendering = render(self._tokenizer, request.messages)
        elif self.template == "chat":
            raise ConfigError(
                f"the reward {self.name!r} has template='chat', and the prompt is not a "
                "conversation; use decoder.chat(...), or template='auto'"
            )
        else:
            rendering = Rendering(list(request.prompt), [])
        closing = rendering.closing if self._closing_ids is None else self._closing_ids
        if len(closing) > self.closings:
            raise ConfigError(
                f"the template of the reward {self.name!r} closes this conversation with "
                f"{len(closing)} ids, and a short one with {self.closings}; pass closing_ids="
            )
        return Rendering(rendering.prefix, closing)

    def check(self, request: Reading, new_tokens: int) -> None:
        check_eval(self.backbone)
        rendering = self.rendering(request)
        unknown = [token for token in rendering.prefix if token >= self.backbone.vocabulary]
        if unknown:
            raise PromptError(
                f"the prompt contains {unknown[0]}, which the reward model {self.name!r} does not "
                f"know (it has {self.backbone.vocabulary} ids)"
            )
        size = len(rendering.prefix) + new_tokens + len(rendering.closing)
        if size > self.backbone.max_length:
            room = int(self.backbone.max_length) - size + new_tokens
            fewer = f", or set max_new_tokens to at most {room}" if room > 0 else ""
            raise LengthError(
                f"the prompt has {len(rendering.prefix)} tokens and {new_tokens} new ones are "
                f"asked for, {size} together"
                f"{' with the closing ones' if rendering.closing else ''}; the reward model takes "
                f"{self.backbone.max_length:.0f}{self.backbone.limit_reason}. Shorten the "
                f"prompt{fewer}."
            )

    def text(self, request: Reading) -> list[int]:
        return [*self.rendering(request).prefix, *request.response]

    def fill(self, store: GroupCache, text: PagedText, start: int, end: int) -> None:
        self.backbone.prefill(store.cache, text.ids[start:end], text.pages, start)

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> Judge:
        assert store is not None
        kind = ChainJudge if self.closings else SiblingJudge
        return kind(self, memory, store)

    def draft_judge(self, memory: BatchMemory, store: GroupCache | None, positions: int) -> Judge:
        assert store is not None
        kind = ChainJudge if self.closings else SiblingJudge
        return kind(self, memory, store, positions)

    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        rendering = self._finished(request, continuation)
        start = len(rendering.prefix)
        if not rendering.closing:  # the head at a token judges the text that ends there
            hidden = self._hidden([[*rendering.prefix, *continuation]])[0]
            return self.head.rewards(hidden[start:]).tolist()
        texts = [
            self._closed(request, rendering, continuation[: i + 1])
            for i in range(len(continuation))
        ]
        chunks = (texts[i : i + AT_ONCE] for i in range(0, len(texts), AT_ONCE))
        return [reward for chunk in chunks for reward in self._at_ends(chunk)]

    def reward_of(self, request: Reading, continuation: Sequence[int]) -> float:
        rendering = self._finished(request, continuation)
        return self._reward(self._closed(request, rendering, continuation))

    def _finished(self, request: Reading, continuation: Sequence[int]) -> Rendering:
        rendering = self.rendering(request)
        size = len(rendering.prefix) + len(continuation) + len(rendering.closing)
        if size > self.backbone.max_length:
            raise LengthError(
                f"the text has {size} tokens; the reward model takes "
                f"{self.backbone.max_length:.0f}{self.backbone.limit_reason}. Shorten it."
            )
        return rendering

    def _closed(
        self, request: Reading, rendering: Rendering, continuation: Sequence[int]
    ) -> list[int]:
        """The ids of a text with its closing ids, which stand in the place of an end token."""
        ended = bool(rendering.closing) and continuation[-1] in request.end_tokens
        kept = continuation[:-1] if ended else continuation
        return [*rendering.prefix, *kept, *rendering.closing]

    def _reward(self, ids: list[int]) -> float:
        return self._at_ends([ids])[0]

    def _at_ends(self, texts: Sequence[list[int]]) -> list[float]:
        ends = torch.tensor([len(text) - 1 for text in texts], device=self.device)
        rows = torch.arange(len(texts), device=self.device)
        return self.head.rewards(self._hidden(texts)[rows, ends]).tolist()

    def _hidden(self, texts: Sequence[list[int]]) -> Tensor:
        """Last hidden states [texts, longest, H]. Padding is on the right, where a causal model
        does not look."""
        longest = max(map(len, texts))
        padded = [text + [text[-1]] * (longest - len(text)) for text in texts]
        batch = torch.tensor(padded, device=self.device)
        with self.backbone.own_forward():
            return self.model.base_model(input_ids=batch, use_cache=False).last_hidden_state

    # ---- the linear head, for callers that train it --------------------------------------------

    @property
    def head_weight(self) -> Tensor:
        """[H], of a linear head."""
        linear = self.head.linear
        if linear is None:
            raise RewardHeadError(f"the head of the reward {self.name!r} is not linear")
        return linear[0]
