"""What the decoder layers in Triton compile to for an A100 and an H100, none of which is run.

Nothing spills, and weights come 16 bytes at a time past the registers. On an H100 every kernel lets
the next one begin, asks for its first weights, and waits for the one before it.
"""

import os

import pytest
import triton

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter is on: nothing is compiled", allow_module_level=True)

from binaries import F32, MACHINES, compile_case, layers

from args_fast.kernels.branch_attention import TUNING as ATTENTION
from args_fast.kernels.layer_pass import prefix_cut

PRODUCTS = ("_project", "_feed", "_add")
# Bytes: Triton 3.6 spills these in one kernel of GPT-2 XL's shape, 3.9 none.
SPILLED = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 8
# Each is another set of kernels; `python tests/helpers/binaries.py --op decoder_layers` has all.
COMPILED = [
    layers("opt-2.7b"),
    layers("opt-350m"),  # norms after the sums
    layers("qwen3-0.6b"),
    layers("mistral-7b"),
    layers("gpt2-xl"),
    layers("llama-7b", dtype=F32),
    layers("llama-7b", N=40),  # pairs of row tiles
    # An adapter's terms, in one pass with the language model's rows: pairs again, but of columns.
    layers("llama-7b", rank=8, joined=True),
    layers("gpt2-xl", rank=8, joined=True),
    layers("llama-7b", rank=32, joined=True, dtype=F32),
]


# Of each family one on an A100 too, and float32, which takes the most shared memory.
ON_A100 = ("opt-2.7b", "mistral-7b", "float32", "N 40")
CASES = [(90, case) for case in COMPILED]
CASES += [
    (80, case)
    for case in COMPILED
    if any(name in case.name for name in ON_A100) and "rank" not in case.name
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("arch", "case"), CASES, ids=lambda x: getattr(x, "name", str(x)))
def test_the_layers_fit_and_load_widely(case, arch):
    kernels = compile_case(case, arch)
    assert [k.name for k in kernels if k.name in (*PRODUCTS, "_attend")] == [
        *("_project", "_attend", "_add", "_feed", "_add")
    ]
    for kernel in kernels:
        assert kernel.opcodes.count("EXIT") > 0  # the listing was understood
        assert kernel.spilled <= SPILLED, kernel
        assert kernel.shared_memory <= MACHINES[arch].shared_memory_per_program, kernel
        assert kernel.programs_per_multiprocessor * kernel.warps >= 8, kernel
        if kernel.name in (*PRODUCTS, "_attend"):
            assert kernel.copies.get(16, 0) >= 4, kernel
            assert (kernel.tensor_cores > 0) == case.tensor_cores
        # Programmatic dependent launch, where there is one.
        wait = kernel.ptx.find("griddepcontrol.wait")
        begin = kernel.ptx.find("griddepcontrol.launch_dependents")
        prefetch = kernel.ptx.find("prefetch.global.L2")
        if arch < 90:
            assert (wait, begin, prefetch) == (-1, -1, -1)
            continue
        assert 0 < begin < wait
        assert kernel.launch_pdl
        of_rows = kernel.name in PRODUCTS and "gpt2" not in case.name
        assert (0 < prefetch < wait) == of_rows
        # Nothing is read or written before the wait.
        before = kernel.ptx[:wait]
        assert "ld.global" not in before
        assert "cp.async" not in before
        assert "st.global" not in before


@pytest.mark.parametrize("Hkv", [1, 2, 8, 32, 64])
@pytest.mark.parametrize("G", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("D", [16, 64, 80, 128, 256])
def test_a_prefix_is_cut_in_whole_blocks(D, G, Hkv):
    for tuning in ATTENTION.values():
        for size in (2, 4):
            cut = prefix_cut(tuning, size, D, G, Hkv, 108)
            assert cut["CHUNK"] % cut["BLOCK_N"] == 0
            assert cut["CHUNK"] >= cut["BLOCK_N"]
            assert cut["BLOCK_M"] in (16, 32, 64)
