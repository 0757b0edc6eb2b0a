"""A decoder without models: its answer depends on nothing but the request, as the true one's does.

It decodes some requests at a time and completes them in a random order.
"""

import time
from random import Random

from args_fast.config import DecodingConfig
from args_fast.errors import ConfigError
from args_fast.generation import Generation
from args_fast.jobs.job import Settings, decode_lines, opened

SETTINGS = Settings("lm", "rm", "float32", DecodingConfig(max_new_tokens=5))
REFUSED_K = 99


class FakeDecoder:
    tokenizer = None

    def __init__(self, slots=8, seed=0, pause=0.0):
        self.slots = slots
        self.pause = pause
        self.random = Random(seed)

    def complete(self, requests):
        pending = enumerate(requests)
        under_way = []
        while True:
            while len(under_way) < self.slots:
                request = next(pending, None)
                if request is None:
                    break
                under_way.append(request)
            if not under_way:
                return
            if self.pause:
                time.sleep(self.pause)
            index, (prompt, config) = under_way.pop(self.choose(under_way))
            for sample in config.samples():
                yield index, answer(prompt, sample)

    def choose(self, under_way):
        return self.random.randrange(len(under_way))


def answer(prompt, config):
    if config.k == REFUSED_K:
        return ConfigError(f"k is {REFUSED_K}")
    ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
    n = config.max_new_tokens
    tokens = [(sum(ids) * 31 + config.seed + i) % 997 for i in range(n)]
    floats = [token / 7 for token in tokens]
    return Generation(tokens, f"answer ü {tokens}", floats, floats, floats, "length", ids)


def run_job(source, output, settings=SETTINGS, decoder=None, **options):
    """The whole job, and how many records it wrote."""
    decoder = decoder or FakeDecoder()
    with opened(str(source), str(output), settings, **options) as job:
        return sum(1 for _ in job.write(decode_lines(decoder, job.lines(), job.settings)))
