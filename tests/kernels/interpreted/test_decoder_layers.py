"""Whole decoder layers in Triton, against the plain ones; and that a row's bits are its own."""

import pytest
import torch
from hypothesis import Phase, given, settings
from layer_cases import ACTIVATIONS, layers_case, layers_cases
from op_cases import DTYPES, NAN, bits, chain, siblings, tree

from args_fast.kernels import decoder_layers as module
from args_fast.kernels import layer_pass
from args_fast.ops import plain_layers
from args_fast.ops.decoder_layers import by_name

# Relative error of a result. In 16 bits what is multiplied is rounded, and the plain one does not.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
HIDDEN, WEIGHTS, TAIL_K, TAIL_V = range(4)


def layers_in_triton(hidden, weights, *others):
    counters = torch.zeros(module.COUNTERS, dtype=torch.int32)
    assert module.unsupported(by_name(weights), others[0].shape[-1]) is None
    module.decoder_layers(hidden, by_name(weights), *others, counters=counters)
    assert not counters.any()  # as they were found


def run(function, case):
    """(hidden, tail_k, tail_v) afterwards; the case stays as it was."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in case]
    function(*copies)
    return copies[HIDDEN], copies[TAIL_K], copies[TAIL_V]


def assert_layers(case):
    for got, wanted in zip(
        run(layers_in_triton, case), run(plain_layers.decoder_layers, case), strict=True
    ):
        error = (got.double() - wanted.double()).norm()
        assert error <= TOLERANCE[case[TAIL_K].dtype] * wanted.double().norm()


LLAMA = {"rotary": 8}
OPT = {"norm": "layer", "gated": False, "biases": True, "activation": "relu"}
SHAPES = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"biases": True},
    "qwen3": LLAMA | {"head_norms": True},
    "mistral": LLAMA | {"windows": [7, 0]},
    "partial": {"rotary": 4},
    "opt": OPT,
    "opt-350m": OPT | {"pre_norm": False, "final": False},
    "gpt2": OPT | {"columns": True, "activation": "gelu_tanh"},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_layers_of_models(name, dtype):
    assert_layers(layers_case([37, 0, 130], 5, dtype=dtype, **SHAPES[name]))
