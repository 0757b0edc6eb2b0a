"""The engine with every op in Triton: the published tokens, and the naive decoder's."""

import json
from pathlib import Path

import pytest
import torch

from args_fast import ArgsDecoder, DecodingConfig, ops, reference
from args_fast.errors import BackendError
from args_fast.kernels import commit
from args_fast.ops import backends
from args_fast.ops.schemas import FUSED, SCHEMAS

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = [
    next(c for c in cases if 1 < len(c["prompt"]) < 30)
    for cases in (
        [c for c in json.loads((GOLDEN / "cases.json").read_text()) if (c["family"], c["k"]) == key]
        for key in (("opt", 10), ("llama", 10), ("llama", 1))
    )
]
STEPS = 3


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT, "triton")


@pytest.fixture(scope="module")
def tiny():
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        Gemma2Config,
        GptOssConfig,
    )

    options = {
        "vocab_size": 61,
        "pad_token_id": 0,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 96,
        "sliding_window": 6,
        "initializer_range": 0.3,
        "num_labels": 1,
    }
    torch.manual_seed(3)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    lm = GptOssConfig(**options, num_local_experts=4, rope_parameters=rope)  # sinks
    rm = Gemma2Config(**options, attn_logit_softcapping=0.5)
    # Its own code: some versions of transformers give gemma2 torch's attention without the softcap.
    judge = AutoModelForSequenceClassification.from_config(rm, attn_implementation="eager")
    return ArgsDecoder(AutoModelForCausalLM.from_config(lm).eval(), judge.eval())


def test_the_ops_are_triton():
    for op in SCHEMAS:
        runs = backends.implementation(op, "cpu")
        assert runs is backends.TABLE["cpu"][op]["triton"]
        if op not in FUSED:  # which are made of their parts
            assert runs.__module__ == f"args_fast.kernels.{op}"


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['family']}-k{c['k']}-w{c['w']}")
def test_engine_gives_the_published_tokens(case):
    folder = GOLDEN / case["family"]
    decoder = ArgsDecoder.from_pretrained(folder / "lm", folder / "rm", device="cpu")
    config = DecodingConfig(k=case["k"], w=case["w"], max_new_tokens=STEPS, eos_token_ids=[])
    (result,) = decoder.generate(case["prompt"], config)
    assert result.token_ids == case["continuation"][:STEPS]


def test_engine_equals_the_oracle_in_a_ragged_batch(tiny):
    prompts = [[5, 9, 40, 22, 13, 8, 30, 7, 11, 52, 3, 17, 26, 33, 44, 15, 6, 19], [7], [12, 4, 4]]
    config = DecodingConfig(
        k=7, w=1.5, temperature=0.7, seed=1, max_new_tokens=STEPS, eos_token_ids=[]
    )
    results = tiny.generate(prompts, config)
    for prompt, result in zip(prompts, results, strict=True):
        wanted = reference.decode(tiny.language_model, tiny.reward_model, prompt, config)
        assert result.token_ids == wanted.token_ids
        for field in ("logprobs", "rewards", "scores"):
            assert getattr(result, field) == pytest.approx(getattr(wanted, field), abs=1e-4)


def test_what_triton_cannot_take_is_refused_where_it_is_forced_and_goes_elsewhere_where_not():
    logits = torch.randn(2, 300, dtype=torch.float32)
    with pytest.raises(BackendError, match=r"'triton' cannot run this topk_logprobs: .*k = 200"):
        ops.topk_logprobs(logits, 200)
    with ops.use_backend("torch"):
        wanted = ops.topk_logprobs(logits, 200)
    triton = backends.TABLE["cpu"]["topk_logprobs"]["triton"]
    others = dict(backends.TABLE["cpu"]["topk_logprobs"])
    others.pop("cpp", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(backends.ENVIRONMENT)
        patch.setitem(backends.TABLE["cpu"], "topk_logprobs", {"triton": triton, **others})
        for got, expected in zip(ops.topk_logprobs(logits, 200), wanted, strict=True):
            assert torch.equal(got, expected)
        assert backends.implementation("topk_logprobs", "cpu", (logits, 20)) is triton


def test_an_old_device_is_refused(monkeypatch):
    from args_fast.kernels import device

    monkeypatch.setattr(device, "machine", lambda _: ((7, 5), 40))
    pages = torch.zeros(1, 2, 4, 1, 8)
    tail, one = torch.zeros(1, 1, 1, 1, 8), torch.zeros(1, dtype=torch.int32)
    arguments = (tail, tail, one.long(), pages, pages, one[None], one)
    assert "compute capability 8.0" in commit.unsupported(*arguments)
