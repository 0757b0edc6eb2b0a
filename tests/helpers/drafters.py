"""Drafters that know what comes, that guess blindly, and that are right until the last token."""

import functools
import random

import torch
from tiny_models import VOCABULARY, language_model

from args_fast.drafting import AutoDrafts, Drafts, History, NGrams, SmallLM


class Scripted(Drafts):
    """Drafts of exactly ``length`` tokens, made of the answer that will be given.

    Args:
        answer: (prompt, config) -> the tokens that will be chosen.
        alter: (draft, a random.Random) -> the draft.
        length: tokens of a draft.
    """

    name = "scripted"

    def __init__(self, answer, alter, length):
        self.answer, self.alter = answer, alter
        self.at_least = self.at_most = length

    def open(self, prompt, config):
        return Script(self, len(prompt), self.answer(tuple(prompt), config))


class Script:
    def __init__(self, drafts, prompt, tokens):
        self.drafts, self.prompt, self.tokens = drafts, prompt, tokens

    def propose(self, ids, at_most):
        done = len(ids) - self.prompt
        assert list(ids[self.prompt :]) == self.tokens[:done]  # no token was wrong so far
        return self.drafts.alter(self.tokens[done:][:at_most], random.Random(len(ids)))


def perfect(draft, chance):
    return draft


def blind(draft, chance):
    return [chance.randrange(VOCABULARY) for _ in draft]


def adversarial(draft, chance):
    """Right until the last, then wrong; or wrong at any place."""
    wrong = list(draft)
    if wrong:
        place = chance.choice([len(wrong) - 1, len(wrong) - 1, chance.randrange(len(wrong))])
        wrong[place] = (wrong[place] + chance.randrange(1, VOCABULARY)) % VOCABULARY
    return wrong


def always(drafts, length=8):
    """Drafts whose rule of worth is not asked."""
    drafts.at_least = length
    return drafts


class Watched(Drafts):
    """Another's drafts; counts in how many steps there is one."""

    def __init__(self, drafts):
        self.drafts, self.learn = drafts, drafts.learn
        self.at_least, self.at_most, self.cost = drafts.at_least, drafts.at_most, drafts.cost
        self.proposed = 0

    def open(self, prompt, config):
        return Watch(self, self.drafts.open(prompt, config))


class Watch:
    def __init__(self, watched, drafter):
        self.watched, self.drafter = watched, drafter

    def propose(self, ids, at_most):
        draft = self.drafter.propose(ids, at_most)
        self.watched.proposed += bool(draft)
        return draft


class Dreamer(Drafts):
    """Drafts four tokens: the language model's likeliest, and then likely ones, so that some are
    right, and most are candidates."""

    at_least = at_most = 4

    def __init__(self, lm):
        self.lm = lm.model

    def open(self, prompt, config):
        return self

    @torch.inference_mode()
    def propose(self, ids, at_most):
        text = list(ids)
        for i in range(at_most):
            likely = self.lm(torch.tensor([text])).logits[0, -1].topk(3).indices
            text.append(int(likely[i and (len(ids) + i) % 3]))
        return text[len(ids) :]


@functools.cache
def small_model(seed=1, layers=1):
    return SmallLM(language_model("llama", layers, 32, seed), cost=0.1)


SCRIPTS = {"perfect": perfect, "blind": blind, "adversarial": adversarial}
REAL = {
    "ngram": NGrams,
    "history": History,
    "auto": AutoDrafts,
    "small": small_model,
    "same": lambda: small_model(layers=2),  # the language model itself
}


def make(name, answer, length=4):
    """The drafts of a name, which are verified whatever they are worth."""
    if name in SCRIPTS:
        return Scripted(answer, SCRIPTS[name], length)
    return always(REAL[name]())
