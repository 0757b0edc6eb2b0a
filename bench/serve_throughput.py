"""Tokens per second of the server at 1, 4, 16 and 64 clients, next to the engine alone.

    python -m args_fast.bench.serve_throughput --out bench/results/serve_throughput.json

Clients ask at once, for a whole answer or a stream; the engine gets as many prompts in a list. All
share the machine. Without --lm and --rm the models are random Llamas of 86M parameters. It stops
after --seconds, with the rounds that it has.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as LlamaReward

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.serve import server
from args_fast.serve.app import create_app
from args_fast.serve.engine_view import EngineView
from args_fast.serve.options import ServerOptions
from args_fast.tiny_pair import LM

CLIENTS, MODES = (1, 4, 16, 64), ("engine", "whole", "stream")
PROMPT, NEW = 64, 24


def decoder(given: argparse.Namespace) -> ArgsDecoder:
    """The pair that is measured; the same weights in every process."""
    if given.lm:
        return ArgsDecoder.from_pretrained(given.lm, given.rm)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "vocab_size": 1536}
    sizes |= {"num_hidden_layers": 12, "num_attention_heads": 12, "num_labels": 1}
    config = LlamaConfig(**sizes, pad_token_id=1)
    tokenizer = AutoTokenizer.from_pretrained(LM)
    return ArgsDecoder(LlamaForCausalLM(config), LlamaReward(config), tokenizer=tokenizer)


def serve(given: argparse.Namespace) -> None:
    """The server's process."""
    app = create_app(EngineView(decoder(given)), ServerOptions(model_names=("bench",)))
    server.serve(app, server.listen("127.0.0.1", given.serve))


async def ask(client: httpx.AsyncClient, prompt: list[int], *, stream: bool) -> None:
    """One client: a whole answer, or a stream that is read to its end."""
    body = {"prompt": prompt, "max_tokens": NEW, "ignore_eos": True, "stream": stream}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for _ in response.aiter_lines():
            pass


async def measure(given: argparse.Namespace, url: str) -> dict[int, dict[str, list[float]]]:
    """Seconds of every round, by number of clients and mode."""
    alone, rng = decoder(given), random.Random(0)
    config = DecodingConfig(max_new_tokens=NEW, eos_token_ids=())
    seconds: dict[int, dict[str, list[float]]] = {n: {m: [] for m in MODES} for n in CLIENTS}
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(), retries=10)  # while it loads
    async with httpx.AsyncClient(base_url=url, timeout=600, transport=transport) as client:
        await client.get("/health")
        end = time.monotonic() + given.seconds
        for turn in range(given.rounds + 1):  # the first is a warm-up, of one client each
            for n, mode in ((n, m) for n in CLIENTS for m in MODES if turn or n == 1):
                if turn > 1 and time.monotonic() > end:
                    return seconds
                prompts = [[rng.randrange(2, 1536) for _ in range(PROMPT)] for _ in range(n)]
                began = time.perf_counter()
                if mode == "engine":
                    alone.generate(prompts, config)
                else:
                    asked = [ask(client, prompt, stream=mode == "stream") for prompt in prompts]
                    await asyncio.gather(*asked)
                if turn:
                    seconds[n][mode].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure, print a table, and keep the figures where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--lm", "--rm", "--out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "args_fast.bench.serve_throughput", "--serve", str(port)]
    command += ["--lm", given.lm, "--rm", given.rm] if given.lm else []
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            seconds = asyncio.run(measure(given, f"http://127.0.0.1:{port}"))
        finally:
            process.terminate()
    for n, by_mode in seconds.items():
        rates = {m: n * NEW / statistics.median(times) for m, times in by_mode.items()}
        shown = ", ".join(f"{m} {r:.1f} ({1 - r / rates['engine']:+.1%})" for m, r in rates.items())
        print(f"{n:2} clients, tokens/s (cost): {shown}; {len(by_mode['stream'])} rounds")
    if given.out:
        about = {"pair": str(given.lm or "random, 86M"), "prompt": PROMPT, "new_tokens": NEW}
        given.out.write_text(json.dumps(about | {"k": 10, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
