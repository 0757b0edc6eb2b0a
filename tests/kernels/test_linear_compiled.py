"""What the Triton linear becomes for an A100 and an H100 at the shapes of real models."""

import re

import pytest
import torch
from binaries import MACHINES, RESERVED, Case, compile_case, meta

from args_fast.kernels import linear as module
from args_fast.models.linear import ARRIVALS, ROWS

# Each is another kernel by its splits, its bias, or whether K is a whole number of blocks.
SHAPES = {
    "opt-350m attention": (1024, 1024, True),
    "opt-2.7b up": (10240, 2560, True),
    "opt-2.7b down": (2560, 10240, True),
    "llama-7b down": (4096, 11008, False),
    "llama-3-8b logits": (128256, 4096, False),
}


def compiled(arch, M, N, K, bias, dtype=torch.bfloat16):
    def launch():
        module.linear(
            meta(M, K, dtype=dtype),
            meta(N, K, dtype=dtype),
            meta(N, dtype=dtype) if bias else None,
            meta(ARRIVALS, dtype=torch.int32),
        )

    (kernel,) = compile_case(Case("linear", "linear", launch, "_few"), arch)  # in one launch
    return kernel


def assert_streams(kernel, arch):
    assert kernel.spilled == 0
    assert kernel.shared_memory + RESERVED <= MACHINES[arch].shared_memory_per_program
    # x and W arrive by asynchronous copies to shared memory, 16 bytes a thread, none narrower.
    copies = [opcode for opcode in kernel.opcodes if opcode.startswith("LDGSTS")]
    assert copies
    assert all(".128" in opcode for opcode in copies)
    # Nothing is added up by atomics but the arrivals.
    atomics = [opcode for opcode in kernel.opcodes if re.match("ATOM|RED", opcode)]
    assert len(atomics) <= 1
    assert not any(".F" in opcode for opcode in atomics)


# An A100 has the less shared memory and the fewer programs: there, what is widest and smallest.
EXTREMES = {80: ("opt-350m attention", "llama-3-8b logits"), 90: tuple(SHAPES)}
PLACES = [(arch, shape) for arch in MACHINES for shape in EXTREMES[arch]]


@pytest.mark.parametrize(("arch", "shape"), PLACES)
def test_one_row_streams_without_tensor_cores(arch, shape):
    kernel = compiled(arch, 1, *SHAPES[shape])
    assert_streams(kernel, arch)
    assert kernel.tensor_cores == 0
    assert kernel.programs_per_multiprocessor >= 2


ROWS_OF_PLACES = [(*place, 10) for place in PLACES]
ROWS_OF_PLACES += [(arch, shape, 40) for arch in MACHINES for shape in EXTREMES[80]]


@pytest.mark.parametrize(("arch", "shape", "M"), ROWS_OF_PLACES)
def test_some_rows_stream_through_tensor_cores(arch, shape, M):
    N, K, bias = SHAPES[shape]
    kernel = compiled(arch, M, N, K, bias)
    assert_streams(kernel, arch)
    assert kernel.tensor_cores > 0
    # Divided as often as can be, 1024 rows of W are no more programs than multiprocessors.
    assert kernel.programs_per_multiprocessor >= (1 if N == 1024 else 2)


@pytest.mark.parametrize(
    ("arch", "M", "dtype"),
    [
        *((80, 1, torch.float32), (80, 20, torch.float16), (80, 64, torch.float32)),
        *((90, 1, torch.float16), (90, 20, torch.float32), (90, 64, torch.float16)),
    ],
)
def test_other_types_and_paddings_fit_too(arch, M, dtype):
    kernel = compiled(arch, M, 4096, 4096, True, dtype)
    assert_streams(kernel, arch)
    assert (kernel.tensor_cores > 0) == (dtype == torch.float16 and M > 1)


def test_enough_of_the_weights_is_under_way():
    """bandwidth * latency, 3.4 TB/s * 0.7 us, is 18 KB for each of an H100's multiprocessors."""
    for tuning in module.TUNING.values():
        tiles = [
            (size, min(tuning["own"]), k, stages) for size, (k, _, stages) in tuning["one"].items()
        ]
        tiles += [(size, n, k, stages) for (size, _), (n, k, _, stages) in tuning["few"].items()]
        for size, n, k, stages in tiles:
            assert tuning["resident"] * (stages - 2) * n * k * size >= 18 * 1024


def test_the_engine_knows_the_limits_of_the_kernel():
    assert (module.ROWS, module.ARRIVALS) == (ROWS, ARRIVALS)
