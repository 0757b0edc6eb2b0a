"""Small runs of an evaluation on the embedded pair, decoded naively."""

import json

from naive_decoder import naive_tiny_decoder

from args_fast.eval.methods import parse
from args_fast.eval.plan import Plan, Settings
from args_fast.tiny_pair import HELDOUT, LM, RM

METHODS = ("greedy", "top-k:k=5", "args-greedy:w=1")


def silent(part, done, total):
    pass


class Killed(BaseException):
    """What no one catches, like a signal."""


class Opener:
    """Opens naive decoders and remembers for which models, and how many requests they decoded."""

    def __init__(self, **options):
        self.options = options
        self.opened = []
        self.decoders = []

    def __call__(self, lm, rm):
        self.opened.append((lm, rm))
        self.decoders.append(naive_tiny_decoder(**self.options))
        return self.decoders[-1]

    @property
    def decoded(self):
        return sum(decoder.decoded for decoder in self.decoders)


def a_plan(*methods, **more):
    settings = {"lm": str(LM), "rm": str(RM), "dtype": "float32", "data": f"hh:{HELDOUT}"}
    settings |= {"limit": 3, "max_new_tokens": 8}
    plan = {
        name: more.pop(name) for name in ("judges", "encoder", "timing_prompts") if name in more
    }
    plan = {"timing_prompts": 0, **plan}
    written = methods or METHODS
    return Plan(Settings(**settings | more), tuple(map(parse, written)), **plan)


def samples(folder):
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return {(s["method"], s["index"]): s for s in map(json.loads, lines)}
