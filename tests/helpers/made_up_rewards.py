"""Three rewards that exist in tests only: one on the host, one that reads ids of its own, one that
reads the language model's hidden states. Each also computed naively, for the oracle."""

import torch

from args_fast.errors import RewardError
from args_fast.kvcache.memory import BatchMemory
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches
from args_fast.rewards import Classifier, Judge, Reward

# ---- on the host, with rows that fail ------------------------------------------------------------

POISON = set(range(50, 61))  # a response that contains one of these has no reward
REFUSED = 60  # nor has a prompt that begins with this


def poisoned(request):
    """Whether the reward on the host fails for what a request holds."""
    return request.prompt[0] == REFUSED or bool(POISON & set(request.response))


def liking(ids):
    """A number between -1 and 1 that depends on every id and on its place."""
    total = 0
    for i, token in enumerate(ids):
        total = (total * 31 + token * (i + 7)) % 1009
    return total / 504.5 - 1


class OnHost(Reward):
    """Likes texts by arithmetic on their ids, in Python, and refuses some."""

    name = "host"
    on_host = True

    def __init__(self, poisons=True):
        self.poisons = poisons

    def judge(self, memory, store):
        return OnHostJudge(self.poisons)

    def rewards_along(self, request, continuation):
        prompt = list(request.prompt)
        return [liking([*prompt, *continuation[: i + 1]]) for i in range(len(continuation))]


class OnHostJudge(Judge):
    def __init__(self, poisons):
        super().__init__()
        self._poisons = poisons

    def load(self, requests, *, resumed):
        self.requests = list(requests)

    def read(self, candidates):
        self.errors = {}
        self._rewards = torch.zeros(candidates.ids.shape)
        for row, request in enumerate(self.requests):
            if self._poisons and poisoned(request):
                self.errors[row] = RewardError("the text is poisoned")
            for j, token in enumerate(candidates.ids[row].tolist()):
                self._rewards[row, j] = liking([*request.ids, token])

    def rewards(self):
        return self._rewards


# ---- ids of its own ------------------------------------------------------------------------------

PREFIX = [7, 8, 9, 10, 11]  # before the prompt
CLOSING = [4, 5]  # after each candidate


class OwnIds(Classifier):
    """A classifier that reads PREFIX + prompt + response, and CLOSING after each candidate: chains
    of 1 + 2 rows, read at the last, of which only the candidate's is kept."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.own_ids = True

    def text(self, request):
        return [*PREFIX, *request.ids]

    def judge(self, memory, store):
        return OwnIdsJudge(self, memory, store)

    def rewards_along(self, request, continuation):
        return [
            naive_own_ids(self.model, [*request.prompt, *continuation[: i + 1]])
            for i in range(len(continuation))
        ]


class OwnIdsJudge(Judge):
    def __init__(self, reward, memory: BatchMemory, store):
        super().__init__()
        self._reward, self._memory, self._group = reward, memory, store.group
        k, s = memory.k, len(CLOSING)
        candidate = torch.arange(k * (1 + s)) % k
        depth = torch.arange(k * (1 + s)) // k
        mask = (candidate[:, None] == candidate) & (depth[:, None] >= depth)
        self._branches = Branches.within(
            memory, store.name, store.cache, k * (1 + s), group=store.group, mask=mask
        )

    def load(self, requests, *, resumed):
        if resumed:
            return
        lengths = [len(request.texts[self._group].ids) for request in requests]
        self._memory.send(self._branches.lengths, lengths, 0)

    def read(self, candidates):
        B, k = candidates.ids.shape
        closing = torch.tensor(CLOSING).repeat_interleave(k).expand(B, -1)
        ids = torch.cat([candidates.ids, closing], dim=1)
        hidden = self._reward.backbone.hidden(ids, self._branches.positions(), self._branches)
        self._rewards = self._reward.head.rewards(hidden[:, -k:])

    def rewards(self):
        return self._rewards

    def keep(self, branch):
        self._branches.commit(branch)


@torch.no_grad()
def naive_own_ids(model, text):
    hidden = model.base_model(torch.tensor([[*PREFIX, *text, *CLOSING]])).last_hidden_state
    return model.score(hidden[0, -1]).item()


# ---- the language model's hidden states ----------------------------------------------------------


def head(size):
    return torch.linspace(-1, 1, size) / size**0.5


class OnHidden(Reward):
    """A fixed head on the language model's last hidden state of each candidate."""

    name = "hidden"
    reads_hidden = True

    def attach(self, lm: Backbone, tokenizer):
        self.lm = lm.model

    def judge(self, memory, store):
        return OnHiddenJudge()

    def rewards_along(self, request, continuation):
        return [
            naive_hidden(self.lm, [*request.prompt, *continuation[: i + 1]])
            for i in range(len(continuation))
        ]


class OnHiddenJudge(Judge):
    def read(self, candidates):
        hidden = candidates.hidden
        self._rewards = hidden @ head(hidden.shape[-1])

    def rewards(self):
        return self._rewards


@torch.no_grad()
def naive_hidden(lm, text):
    hidden = lm.base_model(torch.tensor([text])).last_hidden_state[0, -1]
    return (hidden @ head(hidden.shape[-1])).item()
