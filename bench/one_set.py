"""Guided decoding on one set of weights: a head and an adapter on the language model, against its
own greedy decoding and a reward model apart.

    python -m args_fast.bench.one_set FOLDER         a llama such as SmolLM2-135M-Instruct

The adapter has rank 8 on every linear layer and adds nothing (peft's own beginning), and all
rewards have one head, so in float32 all guided ways give the same tokens. One prompt, k = 10. They
take turns; a step is what one more token takes: seconds(1 + n tokens) - seconds(1 token), over n.

With --computed, what a token costs a GPU, counted here in a decode through the modules: bytes of
weights, and ops that are not views, each of which launches a kernel or more.
"""

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench.peers.ours import adapter_on
from args_fast.rewards import Head

K, W = 10, 1.5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def decoders(folder: str, dtype: torch.dtype, **options: Any) -> dict[str, ArgsDecoder]:
    """Each way to decode; they share the language model."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    kind: Any = AutoModelForSequenceClassification
    apart = kind.from_pretrained(folder, dtype=dtype, num_labels=1)
    ways = {"greedy": apart, "Head": Head(copy.deepcopy(apart.score)), "separate pair": apart}
    made = {name: ArgsDecoder(lm, reward, **options) for name, reward in ways.items()}
    made["Adapter"] = ArgsDecoder(lm, adapter_on(apart), **options)
    joined = options | {"lookahead": True, "fused_layers": False}
    made["Adapter, one pass"] = ArgsDecoder(lm, adapter_on(apart), **joined)
    return made


def decode(name: str, pair: ArgsDecoder, prompt: list[int], tokens: int) -> list[int]:
    k = 1 if name == "greedy" else K
    config = DecodingConfig(k=k, w=W, max_new_tokens=tokens, eos_token_ids=[])
    return pair.generate([prompt], config)[0].token_ids


def steps(pairs: dict[str, ArgsDecoder], prompt: list[int], new: int, rounds: int) -> dict:
    """Medians of the seconds of a step; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(rounds + 1):
        for name, pair in pairs.items():
            began = time.perf_counter()
            decode(name, pair, prompt, 1)
            one = time.perf_counter()
            decode(name, pair, prompt, 1 + new)
            times[name].append((time.perf_counter() - one - (one - began)) / new)
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


class Ops(TorchDispatchMode):
    """Counts ops that are not views, and the bytes of the weights that products read.

    Args:
        places: of the weights.
    """

    def __init__(self, places: set[int]) -> None:
        super().__init__()
        self.places, self.ops, self.bytes = places, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        self.ops += not is_view
        if func.overloadpacket.__name__ in ("linear", "mm", "addmm"):
            read = [x for x in args if isinstance(x, torch.Tensor) and x.data_ptr() in self.places]
            self.bytes += sum(x.nbytes for x in read)
        return func(*args, **(kwargs or {}))


def computed(name: str, pair: ArgsDecoder, prompt: list[int]) -> tuple[float, ...]:
    """Bytes of weights and ops of one more token."""
    (reward,) = pair.engine.panel.rewards.values()
    places = {p.data_ptr() for p in (*pair.language_model.parameters(), *reward.weights())}
    counts = []
    for tokens in (2, 2, 6):  # the first decode does what is done once
        with Ops(places) as counted:
            decode(name, pair, prompt, tokens)
        counts.append((counted.bytes, counted.ops))
    return tuple((many - few) / 4 for few, many in zip(*counts[1:], strict=True))


def main() -> None:
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--tokens", type=int, default=32, help="after the first")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--computed", action="store_true")
    asked = parser.parse_args()
    prompt = torch.randint(100, 1000, (asked.prompt,)).tolist()
    for kind, dtype in DTYPES.items():
        options: dict[str, Any] = {"max_batch_size": 1}
        options |= {"lookahead": True, "fused_layers": False} if asked.computed else {}
        pairs = decoders(asked.folder, dtype, **options)
        if asked.computed:
            figures = {name: computed(name, pair, prompt) for name, pair in pairs.items()}
            for name, (size, ops) in figures.items():
                print(f"{kind:9} {name:18} {size / 1e6:9.1f} MB of weights {ops:7.0f} ops a token")
            continue
        measured = steps(pairs, prompt, asked.tokens, asked.rounds)
        for name, seconds in measured.items():
            ratio = seconds / measured["greedy"]
            print(f"{kind:9} {name:18} {seconds * 1e3:7.1f} ms a token, {ratio:5.2f} x greedy")


if __name__ == "__main__":
    main()
