"""The decoder layers of a device, and the end of a step, against plain torch on the CPU.

The device is CUDA. ARGS_FAST_TEST_DEVICE=cpu runs the same on the CPU's, which is how these tests
are themselves tested where there is no GPU.
"""

import contextlib
import copy
import os

import oracle
import pytest
import tiny_models
import torch
from layer_cases import apart, layers_case
from op_cases import DTYPES, random
from ways import fused_up_to, rows_by_way

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.ops import plain_layers, record
from args_fast.ops.decoder_layers import backend, decoder_layers, faster_rows

DEVICE = os.environ.get("ARGS_FAST_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    (DEVICE == "cuda" and not torch.cuda.is_available()) or backend(DEVICE) is None,
    reason="torch sees no CUDA device here, or the op is not built",
)
# Relative error of a result. In 16 bits what is multiplied is rounded, and the plain one does not.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
WRITTEN = (0, 2, 3)  # hidden, tail_k, tail_v; and the first two of the last argument
OPT = {"norm": "layer", "gated": False, "biases": True, "activation": "relu"}
SHAPES = {
    "llama": {"rotary": 128, "D": 128, "H": 512, "F": 1408, "Hq": 4, "Hkv": 4},
    "qwen3": {"rotary": 64, "D": 64, "H": 256, "F": 700, "Hq": 8, "Hkv": 2, "head_norms": True},
    "mistral": {"rotary": 64, "D": 64, "H": 256, "F": 512, "windows": [200, 0]},
    "opt": OPT | {"D": 80, "H": 320, "F": 1280, "Hq": 4, "Hkv": 4},
    "opt-350m": OPT | {"D": 64, "H": 256, "F": 512, "pre_norm": False, "final": False},
    "gpt2": OPT | {"D": 64, "H": 256, "F": 512, "columns": True, "activation": "gelu_tanh"},
}
# With an adapter's terms of several ranks, on all matrices or on some; joined: after as many rows
# of the language model.
ADAPTERS = {
    "llama adapted": SHAPES["llama"] | {"ranks": [8, 0, 3]},
    "llama joined": SHAPES["llama"] | {"ranks": [8, 0, 3], "joined": True},
    "qwen3 joined": SHAPES["qwen3"] | {"ranks": [32, None], "joined": True},
    "opt-350m joined": SHAPES["opt-350m"] | {"ranks": [None, 5], "joined": True},
    "gpt2 joined": SHAPES["gpt2"] | {"ranks": [4], "joined": True},
}
ALL_SHAPES = SHAPES | ADAPTERS


def on_device(case):
    copies = [x.to(DEVICE).clone() if isinstance(x, torch.Tensor) else x for x in case]
    copies[1] = [weight.to(DEVICE) for weight in case[1]]
    copies[-2], copies[-1] = ([x.to(DEVICE).clone() for x in case[i]] for i in (-2, -1))
    return copies


def run(function, case):
    function(*case)
    return [case[i].cpu() for i in WRITTEN] + [x.cpu() for x in case[-1][:2]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL_SHAPES)
def test_layers(name, dtype):
    for lengths, N in (([37, 0, 1300], 10), ([700], 1)):
        case = layers_case(lengths, N, dtype=dtype, **ALL_SHAPES[name])
        got = run(decoder_layers(DEVICE), on_device(case))
        wanted = run(plain_layers.decoder_layers, case)
        for a, b in zip(got, wanted, strict=True):
            error = (a.double() - b.double()).norm()
            assert error <= TOLERANCE[dtype] * b.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_row_has_the_same_bits_alone_and_with_others_and_every_time(name, dtype):
    case = layers_case([300, 37, 1300], 20, dtype=dtype, **SHAPES[name])
    op = decoder_layers(DEVICE)
    whole = run(op, on_device(case))
    for _ in range(20):  # whoever arrives last
        for a, b in zip(run(op, on_device(case)), whole, strict=True):
            assert torch.equal(a, b)
    for text, rows in ((2, [4]), (0, [0, 19]), (1, list(range(20)))):
        part = list(case)
        part[0] = case[0][text : text + 1, rows].contiguous()
        part[2], part[3] = (case[i][:, text : text + 1, rows].contiguous() for i in (2, 3))
        part[6], part[7] = (case[i][text : text + 1] for i in (6, 7))
        part[8] = torch.eye(len(rows), dtype=torch.bool)
        for i in (9, 10):
            if case[i] is not None:
                part[i] = case[i][text : text + 1, rows].contiguous()
        hidden, tail_k, tail_v = run(op, on_device(part))
        assert torch.equal(hidden[0], whole[0][text, rows])
        assert torch.equal(tail_k[:, 0], whole[1][:, text, rows])
        assert torch.equal(tail_v[:, 0], whole[2][:, text, rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in ADAPTERS if name.endswith(" joined")])
def test_a_joined_pass_is_two_passes_to_the_bit(name, dtype):
    """Of the language model's rows without terms, and of the adapted ones; of 10 rows a text, so
    that tiles have rows of both, and of 1."""
    op = decoder_layers(DEVICE)
    for lengths, N in (([300, 37, 1300], 10), ([37], 10), ([700], 1)):
        case = layers_case(lengths, N, dtype=dtype, **ADAPTERS[name])
        hidden, *tails = run(op, on_device(case))
        (first, *plain_tails), (second, *tails_adapted) = (
            run(op, on_device(part)) for part in apart(case)
        )
        assert torch.equal(hidden, torch.cat([first, second]))
        for got, wanted in zip(tails, [*plain_tails, *tails_adapted], strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(("B", "k", "S", "t"), [(1, 1, 1, 0), (3, 10, 16, 7), (64, 40, 8, 7)])
def test_record(B, k, S, t):
    noise = random(B, S, k, seed=3)
    case = [
        torch.arange(B * k).view(B, k),
        *(random(B, k), torch.arange(B) % k, random(B, seed=1), random(B, seed=2), noise),
        *(torch.tensor([t]), torch.zeros(B, 1, dtype=torch.int64), torch.full((B, S), -1)),
        *(torch.zeros(B, S, 3), noise[:, t].clone()),
    ]
    got = [x.to(DEVICE).clone() for x in case]
    record.record(*got)
    record.plain(*case)
    for a, b in zip(got, case, strict=True):
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize(("lm", "rm"), [("llama", "opt"), ("opt", "qwen3")])
def test_every_replay_of_a_step_has_the_same_bits_and_those_of_the_eager_step(lm, rm, lookahead):
    """With lookahead both models run at once, on two streams, each with counters of its own."""
    models = tiny_models.language_model(lm), tiny_models.reward_model(rm)
    pair = [copy.deepcopy(model).to(DEVICE, torch.bfloat16) for model in models]
    replayed, eager = (
        ArgsDecoder(*pair, fused_layers=True, lookahead=lookahead, cuda_graphs=graphs)
        for graphs in (True, False)
    )
    assert replayed.engine.lm.fused_layers() is not None
    prompt = tiny_models.tokens(90)
    config = DecodingConfig(k=10, w=1.5, max_new_tokens=6, eos_token_ids=[])
    (wanted,) = eager.generate(prompt, config)
    for number in range(200 if DEVICE == "cuda" else 3):
        (result,) = replayed.generate(prompt, config)
        assert result == wanted, number  # tokens, and the last bit of every number
    for runner in replayed.engine.bursts.runners.values():
        assert runner.graphs.failure is None


@pytest.mark.parametrize("lookahead", [True, False])
def test_auto_fuses_passes_of_a_tile_of_rows_with_the_oracles_tokens(lookahead):
    """In float32. Alone every pass is fused; a batch of 3 with k = 10 has passes of 30 rows or more
    too, which go through the modules."""
    models = tiny_models.language_model("llama"), tiny_models.reward_model("opt")
    pair = [copy.deepcopy(model).to(DEVICE) for model in models]
    measured = faster_rows(torch.device(DEVICE)) == 16
    with contextlib.nullcontext() if measured else fused_up_to(16):
        with rows_by_way() as proof:
            decoder = ArgsDecoder(*pair, lookahead=lookahead)
        assert proof["fused"]
        assert proof["modules"]
        prompts = [tiny_models.tokens(length, seed=length) for length in (12, 3, 9)]
        config = DecodingConfig(k=10, w=1.5, max_new_tokens=20, eos_token_ids=[])
        expected = [oracle.decode(*models, text, k=10, w=1.5, steps=20) for text in prompts]
        for texts in (1, 3):
            with rows_by_way() as rows:
                for _ in range(3):  # as it is, captured, replayed
                    results = decoder.generate(prompts[:texts], config)
                    for result, text in zip(results, expected, strict=False):
                        assert text.margin > 1e-4
                        assert result.token_ids == text.tokens
                        assert result.rewards == pytest.approx(text.rewards, abs=1e-3)
            assert max(rows["fused"]) <= 16
            assert (10 in rows["fused"]) == (texts == 1)
            assert bool(rows["modules"]) == (texts == 3)
            assert all(count >= 30 for count in rows["modules"])
    for runner in decoder.engine.bursts.runners.values():
        assert runner.graphs.failure is None
