"""Tokens per second of the server at 1, 4, 16 and 64 clients, next to the engine alone.

    python -m args_fast.bench.serve_throughput

Clients ask at once, for whole answers or for streams; the engine alone gets as many prompts in a
list. All share the machine. The three take turns, and a cost is the median over rounds of what the
server took more than the engine did in the same round. Without --lm and --rm the models are random
Llamas of 86M parameters. Results go to bench/results/serve_throughput.json.
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
from args_fast.bench import results
from args_fast.bench.timing import environment
from args_fast.serve import server
from args_fast.serve.app import create_app
from args_fast.serve.engine_view import EngineView
from args_fast.serve.options import ServerOptions
from args_fast.tiny_pair import LM

CLIENTS, MODES = (1, 4, 16, 64), ("engine", "whole", "stream")
PROMPT, NEW = 64, 24
LEAST = 3  # rounds


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
        for n in CLIENTS:
            end = time.monotonic() + given.seconds / len(CLIENTS)
            for turn in range(given.rounds + 1):  # the first is a warm-up of both processes
                if turn > LEAST and time.monotonic() > end:
                    break
                for mode in MODES if turn else MODES[:2]:
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


def summary(n: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Tokens per second of each mode at n clients, and what the server costs."""
    alone = seconds["engine"]
    found: dict[str, Any] = {"rounds": len(alone)}
    for mode, times in seconds.items():
        found[mode] = {"tokens_per_second": round(n * NEW / statistics.median(times), 1)}
        if mode != "engine":
            costs = [1 - a / b for a, b in zip(alone, times, strict=True)]
            found[mode] |= {
                "cost": round(statistics.median(costs), 4),
                "cost_of_rounds": [round(cost, 4) for cost in costs],
            }
    return found


def shown(n: int, found: dict[str, Any]) -> str:
    """A summary as one line."""
    parts = [f"engine {found['engine']['tokens_per_second']:.1f}"]
    for mode in MODES[1:]:
        parts.append(f"{mode} {found[mode]['tokens_per_second']:.1f} ({found[mode]['cost']:+.1%})")
    return f"{n:2} clients, tokens/s (cost): {', '.join(parts)}; {found['rounds']} rounds"


def main() -> None:
    """Measure, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--lm", "--rm"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, default=results.root() / "serve_throughput.json")
    parser.add_argument("--rounds", type=int, default=9, help="at most, for each number of clients")
    parser.add_argument(
        "--seconds", type=float, default=240, help=f"in all; {LEAST} rounds are made in any case"
    )
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
    clients = {n: summary(n, by_mode) for n, by_mode in seconds.items()}
    for n, found in clients.items():
        print(shown(n, found))
    document = {
        "environment": environment(torch.device("cpu")),
        "pair": given.lm.name if given.lm else "random, 86M",
        "prompt": PROMPT,
        "new_tokens": NEW,
        "k": DecodingConfig().k,
        "clients": clients,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
