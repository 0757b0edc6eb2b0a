"""A reward model that is a decoder with a head, read at the candidate itself."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import ops
from args_fast.errors import ConfigError, LengthError, PairMismatchError, RewardHeadError
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.pages import PagedText
from args_fast.kvcache.storage import GroupCache
from args_fast.models.backbone import Backbone, check_length
from args_fast.models.branches import Branches
from args_fast.models.proof import prove
from args_fast.rewards.base import Candidates, Choice, Judge, Reading, Reward


class Classifier(Reward):
    """A ``*ForSequenceClassification`` model with one label that reads the language model's ids.

    Its own forward pools "the last token that is not padding", which scores a candidate EOS as
    r([x]) wherever pad and EOS share an id. Here the head is applied to the candidate's own hidden
    state. The k candidates are branches over one stored prefix, in the language model's own pages.

    Args:
        model: the reward model; put in eval mode.
        name: by which requests name it.

    Raises:
        RewardHeadError: there is no linear head called ``score`` with one output.
        UnsupportedModelError: the engine cannot drive the model.
        ProofError: a branched forward of the model disagrees with a recomputed one.
    """

    def __init__(self, model: PreTrainedModel, *, name: str = "reward") -> None:
        if isinstance(model, nn.Module):
            model.eval()  # dropout would make every reward a lottery
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear):
            raise RewardHeadError(
                f"the reward model ({type(model).__name__}) has no linear head called `score`; "
                "load it with AutoModelForSequenceClassification from a checkpoint trained as one."
            )
        if head.out_features != 1:
            raise RewardHeadError(
                f"the reward model's head has num_labels = {head.out_features}; a reward is one "
                "number, so it must be 1. Use a model trained with num_labels=1."
            )
        self.name = name
        self.model = model
        self.backbone = Backbone(model, "reward model")
        self.device = self.backbone.device
        self.layout = self.backbone.layout

    # ---- with the language model ---------------------------------------------------------------

    def attach(self, lm: Backbone, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self.device.type != lm.device.type:
            raise PairMismatchError(
                f"the language model is on {lm.device} and the reward model on {self.device}; move "
                "both to one device, or to two CUDA devices"
            )
        if self.backbone.vocabulary < lm.vocabulary:
            raise PairMismatchError(
                f"the language model can choose among {lm.vocabulary} ids, but the reward model "
                f"has embeddings for {self.backbone.vocabulary}; use a pair that shares one "
                f"vocabulary, or rm.resize_token_embeddings({lm.vocabulary}) if the ids beyond are "
                "padding"
            )
        prove(self.backbone, logits=False)

    def compile(self, mode: str) -> None:
        self.backbone.compile(mode)
        prove(self.backbone, logits=False)  # again, as compiled: a compiler can be wrong too

    def weights(self) -> Iterable[Tensor]:
        return self.model.parameters()

    # ---- one request ---------------------------------------------------------------------------

    def check(self, request: Reading, new_tokens: int) -> None:
        if self.model.training:
            raise ConfigError(
                "the reward model is in training mode, so its outputs are random; call .eval()"
            )
        check_length(self.backbone, len(request.prompt), new_tokens)

    def fill(self, store: GroupCache, text: PagedText, start: int, end: int) -> None:
        self.backbone.prefill(store.cache, text.ids[start:end], text.pages, start)

    def judge(self, memory: BatchMemory, store: GroupCache | None) -> "ClassifierJudge":
        assert store is not None
        return ClassifierJudge(self, memory, store)

    def rewards_along(self, request: Reading, continuation: Sequence[int]) -> list[float]:
        """The model is causal: its head at a token judges the text that ends there."""
        text = torch.tensor([[*request.prompt, *continuation]], device=self.device)
        if text.shape[1] > self.backbone.max_length:
            raise LengthError(
                f"the text has {text.shape[1]} tokens; the reward model takes "
                f"{self.backbone.max_length:.0f}. Shorten it."
            )
        hidden = self.model.base_model(input_ids=text, use_cache=False).last_hidden_state
        return self.reward(hidden[0])[len(request.prompt) :].tolist()

    # ---- the head, which is asked of the model each time: between decodes it is the caller's ----

    @property
    def head_weight(self) -> Tensor:
        """[H]"""
        return self.model.score.weight.detach()[0]  # type: ignore[operator, union-attr, index]

    @property
    def head_bias(self) -> Tensor | None:
        """[1], or None"""
        bias: Tensor | None = self.model.score.bias  # type: ignore[union-attr, assignment]
        return None if bias is None else bias.detach()

    def reward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> rewards [...] f32, each by the arithmetic of ``ops.select``, whatever
        the other rows are."""
        rows = hidden.reshape(-1, 1, hidden.shape[-1])
        zeros = torch.zeros(rows.shape[0], 1, device=rows.device)
        ones = torch.ones(rows.shape[0], device=rows.device)
        _, rewards, _ = ops.select(rows, self.head_weight, self.head_bias, zeros, ones, ones, zeros)
        return rewards.view(hidden.shape[:-1])


class ClassifierJudge(Judge):
    """k branches of the reward model over one prefix; choosing and committing are one op."""

    def __init__(self, reward: Classifier, memory: BatchMemory, store: GroupCache) -> None:
        super().__init__()
        self._reward = reward
        self._memory = memory
        self._home = memory.device  # the language model's
        self._group = store.group
        self._branches = Branches.within(
            memory, reward.name, store.cache, memory.k, group=store.group
        )

    def load(self, requests: Sequence[Reading], *, resumed: bool) -> None:
        if resumed:
            return
        lengths = [len(request.texts[self._group].ids) for request in requests]
        self._memory.send(self._branches.lengths, lengths, 0)

    def read(self, candidates: Candidates) -> None:
        # Before anything that takes long: a copy between devices waits for both.
        self._candidates = candidates.to(self._reward.device)
        self._hidden = self._reward.backbone.hidden(
            self._candidates.ids, self._branches.positions(), self._branches
        )

    def rewards(self) -> Tensor:
        return self._to_home(self._reward.reward(self._hidden))

    def keep(self, branch: Tensor) -> None:
        self._branches.commit(branch.to(self._reward.device, non_blocking=True))

    def choose(self, candidates: Candidates, *, detailed: bool) -> Choice:
        if detailed:
            return super().choose(candidates, detailed=True)
        here = self._candidates
        chosen = self._branches.select_commit(
            self._hidden,
            self._reward.head_weight,
            self._reward.head_bias,
            here.logprobs,
            here.w,
            here.temperature,
            here.noise,
        )
        return Choice(*(self._to_home(x) for x in chosen))

    def _to_home(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._home, non_blocking=True)
