"""What every file of csrc/cuda becomes for an A100 and an H100, without either: nvcc takes it,
against the headers of the torch that is here, and ptxas tells registers, spills and shared
memory."""

import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths
from triton import knobs

CUDA = Path(__file__).parents[2] / "csrc/cuda"
FILES = sorted(path.name for path in CUDA.iterdir() if path.suffix in (".cu", ".cpp"))
KERNELS = sorted(path.name for path in CUDA.glob("*.cu"))
# CUDA programming guide, compute capabilities 8.0 and 9.0: bytes of shared memory per
# multiprocessor, of which the driver keeps RESERVED per block.
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024}
RESERVED = 1024
REGISTERS, THREADS = 65536, 2048
# What the launchers use, and how many blocks of it a multiprocessor must hold for the reads of some
# to hide the waiting of others: half of its threads.
BLOCK = {"topk_logprobs.cu": 256, "select_commit.cu": 512}

NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
archs = pytest.mark.parametrize("arch", SHARED_MEMORY)


@dataclass(frozen=True)
class Kernel:
    name: str
    registers: int  # per thread
    stack: int  # bytes per thread in local memory
    spilled: int  # bytes stored and loaded
    shared_memory: int  # bytes per block
    sass: str

    def count(self, opcode: str) -> int:
        return len(re.findall(rf"\s{opcode}\b", self.sass))


@functools.cache
def compiled(file: str, arch: int) -> list[Kernel]:
    """The kernels of a file as setup.py builds it."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "code.cubin" if file in KERNELS else "code.o")
        kind = ["-cubin"] if file in KERNELS else ["-x", "cu", "-c"]
        command = [
            *(NVCC, *kind, "-std=c++20", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v"),
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            *(f"-I{path}" for path in include_paths()),
            *(CUDA / file, "-o", code),
        ]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert file not in KERNELS or "warning" not in run.stderr, run.stderr
        sass = _sass(code) if file in KERNELS else {}
    block = (
        r"Compiling entry function '(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers([^\n]*)"
    )
    kernels = []
    for name, stack, stores, loads, registers, rest in re.findall(block, run.stderr, re.S):
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels.append(
            Kernel(
                name,
                int(registers),
                int(stack),
                int(stores) + int(loads),
                int(shared[1]) if shared else 0,
                sass[name],
            )
        )
    return kernels


def _sass(code: Path) -> dict[str, str]:
    command = [knobs.nvidia.cuobjdump.path, "--dump-sass", code]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function : |\Z)", text, re.S))


# Files without a kernel are the host's: the same for every device.
@needs_nvcc
@pytest.mark.parametrize(
    ("file", "arch"), [(f, a) for f in FILES for a in SHARED_MEMORY if f in KERNELS or a == 80]
)
def test_nvcc_takes_every_file(file, arch):
    kernels = compiled(file, arch)
    # f32, bf16 and f16; for select_commit also a head of f32 with hidden states of 16 bits.
    assert len(kernels) == {"topk_logprobs.cu": 3, "select_commit.cu": 5}.get(file, 0)


@needs_nvcc
@archs
@pytest.mark.parametrize("file", KERNELS)
def test_nothing_spills_and_half_of_the_threads_fit(file, arch):
    for kernel in compiled(file, arch):
        assert (kernel.stack, kernel.spilled) == (0, 0), kernel
        assert kernel.count("STL") == kernel.count("LDL") == 0
        blocks = THREADS // 2 // BLOCK[file]
        per_warp = -(-kernel.registers * 32 // 256) * 256  # registers are given out by 256
        assert per_warp * BLOCK[file] // 32 * blocks <= REGISTERS, kernel
        assert (kernel.shared_memory + RESERVED) * blocks <= SHARED_MEMORY[arch], kernel


@needs_nvcc
@archs
@pytest.mark.parametrize("file", KERNELS)
def test_memory_is_read_and_written_sixteen_bytes_at_a_time(file, arch):
    for kernel in compiled(file, arch):
        # The first tile and the next one, of 8 logits in 16 or 32 bits; hidden state and head.
        wide = 2 if "BFloat16" in kernel.name or "Half" in kernel.name else 4
        assert kernel.count(r"LDG\.E\.(\w+\.)*128(\.\w+)*") >= wide, kernel.name
        if file == "select_commit.cu":
            assert kernel.count(r"STG\.E\.(\w+\.)*128") >= 1, kernel.name
