"""Tokens per second of the server by its number of clients, next to the engine alone.

`pytest bench/test_serve.py --benchmark-only`. Clients ask at once, for a whole answer or a stream,
and the engine gets as many prompts in a list; server and clients share the machine, so what the
clients take is a cost too. Each test also reports the CPU time per token of the server's event loop
and that of the clients; the engine decodes in a thread of its own, which is in neither.
"""

import asyncio
import contextlib
import math
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
import torch
from served import in_a_process
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as LlamaReward

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench.cases import SIZE
from args_fast.tiny_pair import LM, RM

PROMPT, NEW_TOKENS, ROUNDS = 64, 24, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model and a reward model with the embedded pair's tokenizer: that pair in a
    rehearsal, else Llamas of 86M parameters with random weights."""
    if SIZE.startswith("tiny"):
        return LM, RM
    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_labels": 1}
    sizes |= {"num_hidden_layers": 12, "num_attention_heads": 12, "pad_token_id": 1}
    tokenizer = AutoTokenizer.from_pretrained(LM)
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    made = []
    for kind in (LlamaForCausalLM, LlamaReward):
        made.append(tmp_path_factory.mktemp(kind.__name__))
        kind(config).save_pretrained(made[-1])
        tokenizer.save_pretrained(made[-1])
    return made


@pytest.fixture(scope="module")
def engine(folders):
    return ArgsDecoder.from_pretrained(*folders)


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    lm, rm = folders
    log = tmp_path_factory.mktemp("server") / "log"
    with in_a_process(log, "--lm", lm, "--rm", rm) as (process, url):
        yield url, process.pid


async def answers(url, prompts, stream):
    # Without ``verify=False`` every round would read the certificates of the system.
    options: dict[str, Any] = {"timeout": 600, "limits": httpx.Limits(), "verify": False}
    async with httpx.AsyncClient(base_url=url, **options) as client:

        async def ask(prompt):
            body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "ignore_eos": True}
            async with client.stream(
                "POST", "/v1/completions", json=body | {"stream": stream}
            ) as response:
                response.raise_for_status()
                return [line async for line in response.aiter_lines()]

        return await asyncio.gather(*map(ask, prompts))


def fresh_prompts(clients, rng=random.Random(0)):  # noqa: B008  # one for all rounds
    """Prompts of their own for every round: the server remembers those it has read."""
    return [[rng.randrange(2, 1000) for _ in range(PROMPT)] for _ in range(clients)]


def loop_seconds(process):
    """CPU time of a process's first thread, which is the server's event loop; NaN where the system
    does not say."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/task/{process}/schedstat").read_text().split()[0]) / 1e9
    return math.nan


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize("way", ["engine", "whole", "stream"])  # one after the other
@pytest.mark.parametrize("clients", [1, 4, 16, 64])
def test_clients(benchmark, server, engine, clients, way, capsys):
    url, process = server
    config = DecodingConfig(max_new_tokens=NEW_TOKENS, eos_token_ids=[])
    rounds = []

    def decode(prompts):
        if way == "engine":
            return engine.generate(prompts, config)
        before = loop_seconds(process), time.thread_time()
        results = asyncio.run(answers(url, prompts, stream=way == "stream"))
        after = loop_seconds(process), time.thread_time()
        rounds.append([(b - a) / clients / NEW_TOKENS for a, b in zip(before, after, strict=True)])
        return results

    benchmark.group = f"{clients} clients"
    benchmark.extra_info.update(way=way, tokens=clients * NEW_TOKENS)
    results = benchmark.pedantic(
        decode, setup=lambda: ((fresh_prompts(clients),), {}), rounds=ROUNDS, warmup_rounds=1
    )
    assert len(results) == clients
    if rounds:
        cpu = [median(values) * 1e6 for values in zip(*rounds, strict=True)]
        benchmark.extra_info.update(loop_microseconds=cpu[0], client_microseconds=cpu[1])
        with capsys.disabled():
            print(
                f"\n{clients} clients, {way}: CPU time per token {cpu[0]:.0f} microseconds of the "
                f"server's event loop, {cpu[1]:.0f} of the clients"
            )
