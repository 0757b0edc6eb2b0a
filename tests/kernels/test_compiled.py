"""What the Triton kernels compile to for an A100 and an H100, read from their binaries: that they
fit, spill nothing, load 16 bytes at a time and multiply in the tensor cores. None is run."""

import os

import pytest

from args_fast.kernels.branch_attention import TUNING

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter is on: nothing is compiled", allow_module_level=True)

from binaries import (
    CASES,
    F16,
    F32,
    MACHINES,
    attention,
    choice,
    committing,
    compile_case,
    recording,
    topk,
)

# One of each kind; `python tests/helpers/binaries.py` compiles them all.
COMPILED = [
    attention(N=1, G=1, D=128),
    attention(N=10, G=1, D=64),
    attention(N=10, G=1, D=80),
    attention(N=10, G=4, D=128),
    attention(N=10, G=8, D=128),
    attention(N=10, G=16, D=128, Hkv=1),
    attention(N=40, G=1, D=96),
    attention(B=64, N=10, G=1, D=64, dtype=F16),
    attention(B=64, N=10, G=4, D=64),
    attention(N=10, G=1, D=128, dtype=F32),
    attention(N=10, G=2, D=256, window=4096, softcap=50.0, t=8192),
    attention(N=10, G=8, D=64, window=128, sinks=True, t=8192),
    topk(50272, 10),
    topk(128256, 1, B=64),
    topk(262144, 10, dtype=F32),
    choice(10, 4096),
    committing(32, 8, 128),
    recording(10),
]


# What presses on an A100's smaller shared memory and registers; binaries.py compiles all for both.
ON_A100 = [
    attention(N=10, G=1, D=64),
    attention(N=40, G=1, D=96),
    attention(N=10, G=1, D=128, dtype=F32),
    attention(N=10, G=2, D=256, window=4096, softcap=50.0, t=8192),
    topk(262144, 10, dtype=F32),
    choice(10, 4096),
]
PAIRS = [*((90, case) for case in COMPILED), *((80, case) for case in ON_A100)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("arch", "case"), PAIRS, ids=lambda x: f"{x.op}: {x.name}" if hasattr(x, "op") else str(x)
)
def test_it_fits_and_loads_widely_and_uses_the_tensor_cores(case, arch):
    machine = MACHINES[arch]
    kernels = compile_case(case, arch)
    assert case.main in [kernel.name for kernel in kernels]
    for kernel in kernels:
        assert kernel.opcodes.count("EXIT") > 0  # the listing was understood
        assert kernel.spilled == 0, kernel
        assert kernel.shared_memory <= machine.shared_memory_per_program, kernel
        # Below a program of 8 warps on a multiprocessor there is too little to wait with.
        assert kernel.programs_per_multiprocessor * kernel.warps >= 8, kernel
    main = next(kernel for kernel in kernels if kernel.name == case.main)
    if case.wide:
        assert main.loads.get(16, 0) + main.copies.get(16, 0) > 0, main
    assert (main.tensor_cores > 0) == case.tensor_cores
    if case.op == "branch_attention":
        # Keys and values come 16 bytes at a time past the registers, blocks ahead of their use;
        # page numbers are the only smaller pieces.
        assert main.copies.get(16, 0) >= 4, main
        assert main.stages >= 2
        assert set(main.copies) <= {4, 16}


def test_the_compiled_ones_are_of_every_op():
    assert {case.op for case in COMPILED} == {case.op for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("capability", TUNING)
def test_every_head_size_has_its_tiles(capability):
    sizes = {(itemsize, D) for itemsize in (2, 4) for D in (16, 32, 64, 128, 256)}
    assert set(TUNING[capability]["blocks"]) == sizes
