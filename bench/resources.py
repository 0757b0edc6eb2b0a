"""What a kernel becomes for a GPU, without the GPU: registers, spills, shared memory, instructions.

A launcher is called as the engine calls it, on meta tensors, while Triton believes in a device of
the wanted architecture: exactly the kernels that it would launch are compiled, with the types and
alignments that they would have, and none is run.

To add a kernel, add a Case to CASES: ``launch`` makes the tensors with ``meta(...)`` and calls the
launcher. A launcher that asks torch.cuda for the capability or the properties of the tensors'
device is told those of the architecture.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from args_fast.kernels.branch_attention import branch_attention


@dataclass(frozen=True)
class Machine:
    """What bounds a kernel on one architecture (CUDA programming guide, compute capabilities)."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory_per_program: int  # bytes
    shared_memory: int  # bytes per multiprocessor; every program takes RESERVED on top of its own
    threads: int = 2048
    programs: int = 32
    registers: int = 65536


RESERVED = 1024  # bytes of shared memory per program that the driver keeps
MACHINES = {
    80: Machine("A100", (8, 0), 108, 163 * 1024, 164 * 1024),
    90: Machine("H100", (9, 0), 132, 227 * 1024, 228 * 1024),
}


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel."""

    name: str
    arch: int
    warps: int
    stages: int
    registers: int  # per thread
    spilled: int  # bytes per thread in local memory
    shared_memory: int  # bytes per program
    sass: str = field(repr=False)

    def count(self, pattern: str) -> int:
        """Instructions whose opcode matches a regular expression from its beginning."""
        return sum(bool(re.match(pattern, opcode)) for opcode in self.opcodes)

    @property
    def opcodes(self) -> list[str]:
        line = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
        return re.findall(line, self.sass, re.M)

    @property
    def global_loads(self) -> dict[int, int]:
        """Load instructions from global memory by their bytes per thread, those of a bulk copy (a
        TMA descriptor) under 0."""
        counts: dict[int, int] = {}
        for opcode in self.opcodes:
            if re.match(r"(LDG|LDGSTS)\b", opcode):
                bits = re.search(r"\.(128|64|U?16|[US]?8)\b", opcode)
                width = int(bits[1].strip("US")) // 8 if bits else 4
            elif opcode.startswith(("UTMALDG", "UBLKCP")):
                width = 0
            else:
                continue
            counts[width] = counts.get(width, 0) + 1
        return counts

    @property
    def tensor_cores(self) -> int:
        return self.count(r"(HMMA|HGMMA|IMMA|DMMA)")

    @property
    def programs_per_multiprocessor(self) -> int:
        """How many programs fit at once, by registers, shared memory and threads."""
        machine = MACHINES[self.arch]
        per_warp = -(-self.registers * 32 // 256) * 256
        return min(
            machine.programs,
            machine.threads // (32 * self.warps),
            machine.registers // (per_warp * self.warps),
            machine.shared_memory // (self.shared_memory + RESERVED),
        )

    @property
    def occupancy(self) -> float:
        """Resident warps over the warps that a multiprocessor can hold."""
        return self.programs_per_multiprocessor * self.warps * 32 / MACHINES[self.arch].threads


@dataclass(frozen=True)
class Case:
    """One call of a launcher. ``tensor_cores``: a kernel of it must use them; ``wide_loads``: a
    kernel of it must load 16 bytes at a time (names of the kernels)."""

    name: str
    launch: Callable[[], object]
    tensor_cores: tuple[str, ...] = ()
    wide_loads: tuple[str, ...] = ()


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor with a shape, strides and a type, and nothing in it."""
    return torch.empty(shape, dtype=dtype, device="meta")


class _Driver(DriverBase):
    """As much of a driver as compiling asks for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # a cache of compiled kernels for each

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> None:
        return None


@contextmanager
def _compiling(arch: int) -> Iterator[list]:
    """Launches in this context compile for ``arch`` and go no further; the list is theirs."""
    machine = MACHINES[arch]
    launched: list = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, warmup: bool, **kwargs: object):
        kernel = run(self, *args, warmup=True, **kwargs)
        launched.append(kernel)
        return kernel

    properties = SimpleNamespace(
        name=machine.name,
        major=machine.capability[0],
        minor=machine.capability[1],
        multi_processor_count=machine.multiprocessors,
    )
    before = driver._active
    driver.set_active(_Driver(arch))
    try:
        with (
            tempfile.TemporaryDirectory() as cache,
            mock.patch.object(knobs.cache, "dir", cache),
            mock.patch.object(JITFunction, "run", compile_only),
            mock.patch("torch.cuda.get_device_capability", return_value=machine.capability),
            mock.patch("torch.cuda.get_device_properties", return_value=properties),
        ):
            yield launched
    finally:
        driver._active = before


def compile_case(case: Case, arch: int) -> list[Kernel]:
    """The kernels that one call launches on an architecture, in order."""
    with _compiling(arch) as launched:
        case.launch()
        return [_read(kernel, arch) for kernel in launched]


def _read(kernel, arch: int) -> Kernel:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", cubin)
        sass = _cuobjdump("--dump-sass", cubin)
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Kernel(
        name=kernel.metadata.name,
        arch=arch,
        warps=kernel.metadata.num_warps,
        stages=kernel.metadata.num_stages,
        registers=used["REG"],
        spilled=used["STACK"] + used["LOCAL"],
        shared_memory=kernel.metadata.shared,
        sass=sass,
    )


def _cuobjdump(*arguments: object) -> str:
    command = [knobs.nvidia.cuobjdump.path, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def attention(
    B: int,
    N: int,
    Hkv: int,
    G: int,
    D: int,
    t: int,
    *,
    page_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    window: int = 0,
    softcap: float = 0.0,
    sinks: bool = False,
) -> Callable[[], object]:
    """branch_attention over prefixes of up to t tokens."""

    def launch() -> Tensor:
        P = -(-t // page_size)
        pages = (B * P + 1, page_size, Hkv, D)
        return branch_attention(
            meta(B, N, Hkv * G, D, dtype=dtype),
            meta(B, N, Hkv, D, dtype=dtype),
            meta(B, N, Hkv, D, dtype=dtype),
            meta(*pages, dtype=dtype),
            meta(*pages, dtype=dtype),
            meta(B, P, dtype=torch.int32),
            meta(B, dtype=torch.int32),
            meta(N, N, dtype=torch.bool),
            D**-0.5,
            window,
            softcap,
            meta(Hkv * G, dtype=dtype) if sinks else None,
        )

    return launch
