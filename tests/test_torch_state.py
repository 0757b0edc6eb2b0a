"""What the caller asks of torch around a decoder changes no token and no number."""

import contextlib

import pytest
import torch
from tiny_models import language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig

PROMPT = tokens(9)
CONFIGS = [
    DecodingConfig(k=4, max_new_tokens=4),
    DecodingConfig(k=4, max_new_tokens=4, temperature=0.7, seed=3),
]


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default dtype": lambda: default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
}


def numbers(pair):
    results = [pair.generate(PROMPT, config)[0] for config in CONFIGS]
    streamed = [token.score for token in pair.stream(PROMPT, CONFIGS[0])]
    read = [(r.token_ids, r.logprobs, r.rewards, r.scores) for r in results]
    return read, streamed, pair.score(PROMPT)[0][1:], pair.rewards(PROMPT, [[5, 6]])


@pytest.fixture(scope="module")
def wanted():
    return numbers(ArgsDecoder(language_model("llama"), reward_model("qwen2")))


@pytest.mark.parametrize("state", STATES)
def test_a_decoder_made_before(wanted, state):
    pair = ArgsDecoder(language_model("llama"), reward_model("qwen2"))
    with STATES[state]():
        assert numbers(pair) == wanted


@pytest.mark.parametrize("state", [name for name in STATES if name != "default device"])
def test_a_decoder_made_within(wanted, state):
    with STATES[state]():
        assert numbers(ArgsDecoder(language_model("llama"), reward_model("qwen2"))) == wanted


def test_autocast_stays_the_callers():
    pair = ArgsDecoder(language_model("llama"), reward_model("qwen2"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pair.generate(PROMPT, CONFIGS[0])
        assert torch.is_autocast_enabled("cpu")
        assert (
            torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.bfloat16
        )
    assert not torch.is_autocast_enabled("cpu")
