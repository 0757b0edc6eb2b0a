"""Models that transformers splits over two processes decode as they do in one.

The engine needs to know nothing of it: it reads shapes off the model's own attention calls, so each
rank stores its own heads, and both see the same logits and rewards.
"""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.tiny_pair import HELDOUT, LM, RM

pytestmark = [
    pytest.mark.skipif(
        find_spec("accelerate") is None, reason="tp_plan needs pip install accelerate"
    ),
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no gloo",
    ),
]
RANKS = 2


ARGMAX = {"k": 7, "w": 1.5, "max_new_tokens": 12}
SAMPLED = {"k": 5, "w": 1.0, "temperature": 1.0, "seed": 3, "max_new_tokens": 12}


def test_two_ranks_choose_the_tokens_of_one_process():
    """Argmax with both models split, and draws with the reward model whole on each rank."""
    pair = ArgsDecoder.from_pretrained(LM, RM, device="cpu")
    lines = HELDOUT.read_text().splitlines()[:3]
    prompts = [pair.tokenizer(json.loads(line)["prompt"]).input_ids for line in lines]
    cases = [
        {"prompts": prompts, "config": ARGMAX, "split_rm": True},
        {"prompts": prompts, "config": SAMPLED, "split_rm": False},
    ]
    answers = list(zip(*decoded_by_ranks(cases), strict=True))
    assert len(answers) == len(cases)
    lm_heads, rm_heads = (AutoConfig.from_pretrained(p).num_key_value_heads for p in (LM, RM))
    for case, of_ranks in zip(cases, answers, strict=True):
        kv_heads = [lm_heads // RANKS, rm_heads // (RANKS if case["split_rm"] else 1)]
        expected = pair.generate(prompts, DecodingConfig(**case["config"]))
        for answer in of_ranks:
            assert answer["kv_heads"] == kv_heads
            for result, wanted in zip(answer["results"], expected, strict=True):
                assert result["token_ids"] == wanted.token_ids
                assert result["rewards"] == pytest.approx(wanted.rewards, abs=1e-3)
                assert result["scores"] == pytest.approx(wanted.scores, abs=1e-3)


def decoded_by_ranks(cases):
    """What each rank answers to each case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    worker = Path(__file__).parent / "helpers" / "parallel_worker.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(RANKS), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(RANKS)
    ]
    try:
        for rank in ranks:
            rank.stdin.write(json.dumps(cases))
            rank.stdin.close()
            rank.stdin = None
        said = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for rank, (_, err) in zip(ranks, said, strict=True):
        assert rank.returncode == 0, err
    lines = [out.splitlines() for out, _ in said]
    return [[json.loads(x.split(":", 1)[1]) for x in of if x.startswith("answer:")] for of in lines]
