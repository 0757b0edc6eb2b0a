"""One decode step after a stored prompt: by the number of candidates, by the number of threads, on
a machine of one's own and on one that others use, and by the kind of reward.

`make bench-steps`, or `pytest bench/test_step.py --benchmark-only`. A round is one token of a
stream (on the CPU, where a burst is one step); the prompt is stored before the first. Nothing is
asserted about time.
"""

import os
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    OPTConfig,
)

from args_fast import ArgsDecoder, DecodingConfig, tiny_pair
from args_fast.bench.cases import SIZE, Case
from args_fast.bench.models import CONFIGS
from args_fast.rewards import Classifier, Text

ROUNDS = 15
CORES = os.cpu_count() or 1
KINDS = {  # of reward -> rounds
    "Classifier": ROUNDS,
    "Classifier, 2 closing ids": ROUNDS,
    "Text, the same tokenizer": ROUNDS,
    "Text, an encoder": 3,  # reads k whole texts
}


def time_steps(benchmark, pair, prompt, k, rounds):
    config = DecodingConfig(k=k, max_new_tokens=rounds + 3, eos_token_ids=[])
    with closing(pair.stream(prompt, config)) as stream:
        next(stream)
        token = benchmark.pedantic(next, args=(stream,), rounds=rounds, warmup_rounds=1)
    assert token.finish_reason is None


@pytest.mark.parametrize("prompt_length", [128, 512])
@pytest.mark.parametrize("k", [1, 2, 10, 40])
def test_step(benchmark, pair, k, prompt_length):
    (prompt,) = Case(SIZE, SIZE, prompt=prompt_length).prompts(500)
    time_steps(benchmark, pair, prompt, k, ROUNDS)


@pytest.mark.parametrize("others", [0, CORES], ids="{} busy others".format)
@pytest.mark.parametrize("threads", sorted({1, CORES}), ids="{} threads".format)
def test_step_of_threads(benchmark, pair, threads, others):
    """`make bench-steps` lets OpenMP's threads wait passively, as args-fast does."""
    (prompt,) = Case(SIZE, SIZE, prompt=128).prompts(500)
    before = torch.get_num_threads()
    with ExitStack() as stack:
        for _ in range(others):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads)
        time_steps(benchmark, pair, prompt, 10, ROUNDS)


def reward(kind, tokenizer):
    """A reward of OPT-125M's shape, its weights drawn at random."""
    torch.manual_seed(0)
    shape = CONFIGS[SIZE]()
    vocabulary = {"vocab_size": len(tokenizer), "num_labels": 1, "max_position_embeddings": 2048}
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(shape, name) for name in names} | vocabulary
    family = BertConfig if "encoder" in kind else OPTConfig
    model = AutoModelForSequenceClassification.from_config(family(**sizes)).eval()
    if kind.startswith("Text"):
        return Text(model, tokenizer)
    return Classifier(model, closing_ids=[4, 5] if "closing" in kind else None)


@pytest.mark.parametrize("kind", KINDS)
def test_step_of_reward(benchmark, kind):
    """The language model is the embedded one: so small that the step is the reward's, and of words,
    as what a text reward has to read again depends on the text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.LM)
    lm = AutoModelForCausalLM.from_pretrained(tiny_pair.LM, max_position_embeddings=1024)
    guided = ArgsDecoder(lm, reward(kind, tokenizer), tokenizer=tokenizer, max_batch_size=1)
    prompt = tokenizer("The sea is wide, and the birds over it are many. " * 50).input_ids[:512]
    time_steps(benchmark, guided, prompt, 10, KINDS[kind])
