"""Tokens per second of the server by its number of clients, next to the engine alone.

`pytest bench/test_serve.py --benchmark-only`. Clients ask at once, for a whole answer or a stream,
and the engine gets as many prompts in a list; server and clients share the machine. The table at
the end (bench/conftest.py) has tokens per second. Nothing is asserted about time.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as LlamaReward

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench.cases import SIZE, Case
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
def url(folders):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "args_fast", "serve", "--port", port]
    command += ["--lm", str(folders[0]), "--rm", str(folders[1])]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while True:  # while it loads
                assert process.poll() is None, "the server ended; start it to see why"
                with contextlib.suppress(httpx.ConnectError):
                    httpx.get(f"{url}/health", timeout=600).raise_for_status()
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


async def answers(url, prompts, stream):
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits()) as client:

        async def ask(prompt):
            body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "ignore_eos": True}
            async with client.stream(
                "POST", "/v1/completions", json=body | {"stream": stream}
            ) as response:
                response.raise_for_status()
                return [line async for line in response.aiter_lines()]

        return await asyncio.gather(*map(ask, prompts))


@pytest.mark.parametrize("way", ["engine", "whole", "stream"])  # one after the other
@pytest.mark.parametrize("clients", [1, 4, 16, 64])
def test_clients(benchmark, url, engine, clients, way):
    prompts = Case("", "", prompt=PROMPT, batch=clients).prompts(1000)
    config = DecodingConfig(max_new_tokens=NEW_TOKENS, eos_token_ids=[])

    def decode():
        if way == "engine":
            return engine.generate(prompts, config)
        return asyncio.run(answers(url, prompts, stream=way == "stream"))

    benchmark.extra_info.update(
        throughput=f"{clients} clients", way=way, tokens=clients * NEW_TOKENS
    )
    results = benchmark.pedantic(decode, rounds=ROUNDS, warmup_rounds=1)
    assert len(results) == clients
