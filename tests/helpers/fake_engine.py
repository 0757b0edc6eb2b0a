"""An engine that says what a test tells it to, behind the interface that the server sees."""

import asyncio
import math
from contextlib import aclosing
from functools import cache
from types import SimpleNamespace

from transformers import AutoTokenizer

from args_fast.encoding import Encoder
from args_fast.engine.capacity import CacheUse
from args_fast.engine.scheduler import Stats
from args_fast.generation import Candidate, Token
from args_fast.rewards.mixture import NamedRewards
from args_fast.serve.engine_view import ScoredPrompt
from args_fast.text import TextStream
from args_fast.tiny_pair import LM


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(LM)


class FakeEngine:
    """Decodes every request to the tokens of one text, with made-up candidates.

    Args:
        text: the answer.
        fail_after: number of tokens after which ``error`` is raised; None for never.
        hold: an asyncio.Event that streams wait for before their first token.
        own: a tokenizer in place of the tiny pair's.
    """

    rewards = ("reward",)
    max_model_len = 64
    max_batch_size = 2
    running = 1
    waiting = 2
    cache = CacheUse(512, 1 << 20, 32, 8, 16, 100, 25, 3)
    stats = Stats(drafted_tokens=9, accepted_tokens=4)

    def __init__(
        self, text="Hello", *, fail_after=None, error=None, hold=None, max_waiting=30, own=None
    ):
        self.tokenizer = own or tokenizer()
        lm = SimpleNamespace(vocabulary=1536)
        self.encoder = Encoder(lm, NamedRewards(), self.tokenizer)
        self._own_encoder = Encoder(lm, NamedRewards(), self.tokenizer)
        self.ids = self.tokenizer(text).input_ids
        self.fail_after = fail_after
        self.error = error
        self.hold = hold
        self.places = self.max_batch_size + max_waiting
        self.alive = True
        self.requests = []  # prompts and configs, as they came
        self.streams = 0  # open ones

    async def decode(self, prompt, config, receive):
        async with aclosing(self.stream(prompt, config)) as tokens:
            async for token in tokens:
                receive([token])

    async def stream(self, prompt, config):
        self.requests.append((self._own_encoder.ids(prompt), config))
        self.streams += 1
        try:
            if self.hold is not None:
                await self.hold.wait()
            text = TextStream(self.tokenizer, config.stop)
            ids = self.ids[: config.max_new_tokens]
            for i, token in enumerate(ids):
                if i == self.fail_after:
                    raise self.error
                last = i + 1 == len(ids)
                text.push(token, last=last)
                reason = "stop" if text.stopped else "length" if last else None
                yield self.token(i, token, text.take(last=reason is not None), reason, config)
                if reason:
                    return
                await asyncio.sleep(0)
        finally:
            self.streams -= 1

    def token(self, place, token, text, reason, config):
        guided = config.consults_reward
        reward = place / 2 if guided else math.nan
        shown = candidates(token, config) if config.return_candidates else None
        return Token(token, text, -0.25, reward, -0.25 + config.w * reward, reason, shown)

    async def score(self, prompt, top):
        logprobs = [math.nan] + [-1.0 - i for i in range(len(prompt) - 1)]
        shown = [()] + [
            tuple(Candidate(100 + j, -0.5 - j, math.nan, math.nan) for j in range(top))
            for _ in prompt[1:]
        ]
        return ScoredPrompt(logprobs, shown)

    async def close(self):
        self.alive = False


def candidates(token, config):
    """The token itself, then k - 1 others, less likely each."""
    return tuple(
        Candidate(token if j == 0 else 200 + j, -0.25 - j, j / 4, -0.25 - j + config.w * j / 4)
        for j in range(config.k)
    )
