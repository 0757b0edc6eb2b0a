"""What a kernel becomes for a GPU, without the GPU: registers, spills, shared memory, instructions.

A launcher is called as the engine calls it, on meta tensors, while Triton believes in a device of
the wanted architecture: exactly the kernels that it would launch are compiled, with the types and
alignments that they would have, and none is run.

To add a kernel, add a Case to CASES: ``launch`` makes the tensors with ``meta(...)`` and calls the
launcher. A launcher that asks torch.cuda for the properties of the tensors' device is told those of
the architecture. What must hold is asserted in tests/kernels/test_compiled.py.

    python tests/helpers/binaries.py --op branch_attention    # a table, to choose a tuning by
"""

import argparse
import re
import subprocess
import tempfile
import warnings
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
from args_fast.kernels.commit import commit
from args_fast.kernels.decoder_layers import COUNTERS, decoder_layers
from args_fast.kernels.record import record
from args_fast.kernels.select import select
from args_fast.kernels.topk_logprobs import topk_logprobs
from args_fast.ops.schemas import LAYER_WEIGHTS


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
    ptx: str = field(repr=False, default="")
    launch_pdl: bool = False

    def count(self, pattern: str) -> int:
        """Instructions whose opcode matches a regular expression from its beginning."""
        return sum(bool(re.match(pattern, opcode)) for opcode in self.opcodes)

    @property
    def opcodes(self) -> list[str]:
        return re.findall(
            r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)[^;]*;", self.sass, re.M
        )

    @property
    def loads(self) -> dict[int, int]:
        """Instructions that load from global memory into registers, by their bytes per thread."""
        return self._widths("LDG")

    @property
    def copies(self) -> dict[int, int]:
        """Instructions that copy from global to shared memory, by their bytes per thread."""
        return self._widths("LDGSTS")

    def _widths(self, opcode: str) -> dict[int, int]:
        counts: dict[int, int] = {}
        for found in self.opcodes:
            if found.split(".")[0] == opcode:
                bits = re.search(r"\.(128|64|U?16|[US]?8)\b", found)
                width = int(bits[1].strip("US")) // 8 if bits else 4
                counts[width] = counts.get(width, 0) + 1
        return counts

    @property
    def tensor_cores(self) -> int:
        return self.count(r"H(G?)MMA")

    @property
    def _room(self) -> dict[str, int]:
        """Programs that fit a multiprocessor by each of the things that there is a limit to."""
        machine = MACHINES[self.arch]
        per_warp = -(-self.registers * 32 // 256) * 256
        return {
            "programs": machine.programs,
            "threads": machine.threads // (32 * self.warps),
            "registers": machine.registers // (per_warp * self.warps),
            "shared memory": machine.shared_memory // (self.shared_memory + RESERVED),
        }

    @property
    def programs_per_multiprocessor(self) -> int:
        return min(self._room.values())

    @property
    def limit(self) -> str:
        """What bounds the programs on a multiprocessor."""
        return min(self._room, key=self._room.__getitem__)


@dataclass(frozen=True)
class Case:
    """One call of a launcher, and the kernel of it that reads most bytes. ``wide``: that kernel is
    to load them 16 bytes at a time; ``tensor_cores``: it is to multiply in them."""

    op: str
    name: str
    launch: Callable[[], object]
    main: str
    wide: bool = True
    tensor_cores: bool = False


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
        ptx=kernel.asm["ptx"],
        launch_pdl=kernel.metadata.launch_pdl,
    )


def _cuobjdump(*arguments: object) -> str:
    command = [knobs.nvidia.cuobjdump.path, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def attention(
    B: int = 1,
    N: int = 10,
    Hkv: int = 8,
    G: int = 1,
    D: int = 128,
    t: int = 4096,
    *,
    dtype: torch.dtype = torch.bfloat16,
    window: int = 0,
    softcap: float = 0.0,
    sinks: bool = False,
    page_size: int = 16,
) -> Case:
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

    options = {"window": window, "softcap": softcap, "sinks": sinks}
    extra = "".join(f", {name}" for name, value in options.items() if value)
    name = f"B {B}, N {N}, G {G}, D {D}, {short(dtype)}{extra}"
    sixteen = dtype != torch.float32
    return Case("branch_attention", name, launch, "_attend", tensor_cores=sixteen)


def topk(V: int, k: int, B: int = 1, dtype: torch.dtype = torch.bfloat16) -> Case:
    # The rows of a batch are 16 bytes aligned only where V is a multiple of 8 (in 16 bits).
    wide = B == 1 or V * dtype.itemsize % 16 == 0
    name = f"B {B}, V {V}, k {k}, {short(dtype)}"
    return Case(
        "topk_logprobs", name, lambda: topk_logprobs(meta(B, V, dtype=dtype), k), "_scan", wide
    )


def choice(k: int, H: int, B: int = 1, dtype: torch.dtype = torch.bfloat16) -> Case:
    def launch() -> object:
        f32 = torch.float32
        return select(
            meta(B, k, H, dtype=dtype),
            meta(H, dtype=dtype),
            None,
            meta(B, k, dtype=f32),
            meta(B, dtype=f32),
            meta(B, dtype=f32),
            meta(B, k, dtype=f32),
        )

    return Case("select", f"B {B}, k {k}, H {H}, {short(dtype)}", launch, "_select")


def committing(L: int, Hkv: int, D: int, B: int = 1, dtype: torch.dtype = torch.bfloat16) -> Case:
    def launch() -> None:
        tail, pages = (L, B, 10, Hkv, D), (L, 257, 16, Hkv, D)
        commit(
            meta(*tail, dtype=dtype),
            meta(*tail, dtype=dtype),
            meta(B, dtype=torch.int64),
            meta(*pages, dtype=dtype),
            meta(*pages, dtype=dtype),
            meta(B, 256, dtype=torch.int32),
            meta(B, dtype=torch.int32),
        )

    return Case("commit", f"L {L}, Hkv {Hkv}, D {D}, {short(dtype)}", launch, "_commit")


def recording(k: int, B: int = 1, S: int = 16) -> Case:
    def launch() -> None:
        f32, i64 = torch.float32, torch.int64
        record(
            meta(B, k, dtype=i64),
            meta(B, k, dtype=f32),
            meta(B, dtype=i64),
            meta(B, dtype=f32),
            meta(B, dtype=f32),
            meta(B, S, k, dtype=f32),
            meta(1, dtype=i64),
            meta(B, 1, dtype=i64),
            meta(B, S, dtype=i64),
            meta(B, S, 3, dtype=f32),
            meta(B, k, dtype=f32),
        )

    return Case("record", f"B {B}, k {k}", launch, "_record", wide=False)


@dataclass(frozen=True)
class Sizes:
    """The layers of a model: hidden size, MLP, query and key/value heads, head size."""

    H: int
    F: int
    Hq: int
    Hkv: int
    D: int
    rms: bool = False
    pre_norm: bool = True
    head_norms: bool = False
    columns: bool = False
    window: int = 0


# Of which the decoder layers in Triton are compiled.
MODELS = {
    "opt-125m": Sizes(768, 3072, 12, 12, 64),
    "opt-350m": Sizes(1024, 4096, 16, 16, 64, pre_norm=False),
    "opt-2.7b": Sizes(2560, 10240, 32, 32, 80),
    "gpt2-xl": Sizes(1600, 6400, 25, 25, 64, columns=True),
    "llama-7b": Sizes(4096, 11008, 32, 32, 128, rms=True),
    "mistral-7b": Sizes(4096, 14336, 32, 8, 128, rms=True, window=4096),
    "qwen3-0.6b": Sizes(1024, 3072, 16, 8, 128, rms=True, head_norms=True),
    "smollm2-135m": Sizes(576, 1536, 9, 3, 64, rms=True),
    "heads of 256": Sizes(2048, 8192, 8, 4, 256, rms=True),
    "heads of 32": Sizes(512, 2048, 16, 16, 32),
}


def layers(
    model: str,
    N: int = 10,
    *,
    L: int = 1,
    B: int = 1,
    t: int = 2048,
    dtype=torch.bfloat16,
    rank: int = 0,
    joined: bool = False,
) -> Case:
    """Decoder layers of a model over N rows of each of B texts. ``rank``: of an adapter's terms on
    every matrix; ``joined``: its rows follow as many of the language model's."""
    a = MODELS[model]
    shapes = {
        "q": (a.Hq * a.D, a.H),
        "k": (a.Hkv * a.D, a.H),
        "v": (a.Hkv * a.D, a.H),
        "o": (a.H, a.Hq * a.D),
        "up": (a.F, a.H),
        "down": (a.H, a.F),
        **({"gate": (a.F, a.H)} if a.rms else {}),
    }

    def weight(name: str) -> Tensor | None:
        if name in shapes:
            rows, columns = shapes[name]
            return (
                meta(columns, rows, dtype=dtype).T
                if a.columns
                else meta(rows, columns, dtype=dtype)
            )
        of = name.removesuffix("_bias")
        if name in ("q_norm", "k_norm"):
            return meta(a.D, dtype=dtype) if a.head_norms else None
        if name in ("norm1", "norm2"):
            return meta(a.H, dtype=dtype)
        if name.endswith("_bias") and not a.rms and of != "gate":
            return meta(shapes[of][0] if of in shapes else a.H, dtype=dtype)
        return None

    def terms() -> dict[str, Tensor]:
        made = {}
        for name, (rows, columns) in shapes.items() if rank else ():
            made[f"{name}_term_a"] = meta(rank, columns, dtype=dtype)
            made[f"{name}_term_b"] = meta(rank, rows, dtype=torch.float32)
        return made

    def launch() -> None:
        f32, i32 = torch.float32, torch.int32
        tail, pages = (L, B, N, a.Hkv, a.D), (L, B * t // 16 + 1, 16, a.Hkv, a.D)
        readers = [
            [*(meta(*tail, dtype=dtype) for _ in range(2)), *(meta(*pages, dtype=dtype),) * 2]
            for _ in range(1 + joined)
        ]
        texts = len(readers) * B
        ids, tokens = meta(texts, N, dtype=torch.int64), meta(t, a.H, dtype=dtype)
        places = None, None
        if not a.rms:
            places = tokens, meta(texts, dtype=i32)[:, None].expand(-1, N)
        decoder_layers(
            meta(texts, N, a.H, dtype=dtype),
            [{name: weight(name) for name in LAYER_WEIGHTS} | terms() for _ in range(L)],
            *readers[0],
            meta(B, t // 16, dtype=i32),
            meta(B, dtype=i32),
            meta(N, N, dtype=torch.bool),
            *(meta(B, N, a.D, dtype=f32) if a.rms else None for _ in range(2)),
            [a.D**-0.5] * L,
            [a.window] * L,
            "rms" if a.rms else "layer",
            1e-5,
            "silu" if a.rms else "relu",
            a.pre_norm,
            meta(a.H, dtype=dtype) if a.pre_norm else None,
            None,
            readers[1] if joined else (),
            counters=meta(COUNTERS, dtype=i32),
            embedding=(ids, tokens, *places, 2) if a.pre_norm else None,  # else it is projected
        )

    name = f"{model}, B {B}, N {N}, {short(dtype)}"
    name += f", rank {rank}{', joined' if joined else ''}" if rank else ""
    sixteen = dtype != torch.float32
    return Case("decoder_layers", name, launch, "_feed", tensor_cores=sixteen)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

# What the engine launches: every kernel, in each of the ways that make another binary of it.
CASES = [
    *(attention(N=N, G=G, D=D) for D in (64, 128) for N in (1, 10, 40) for G in (1, 4, 8)),
    *(attention(N=10, G=G, D=D) for D in (80, 96, 256) for G in (1, 2, 8)),
    *(attention(N=10, G=G, D=128, Hkv=1) for G in (16, 32)),
    *(attention(B=64, N=10, G=G, D=D) for D in (64, 128) for G in (1, 4)),  # not divided
    *(attention(N=10, D=D, dtype=F16) for D in (64, 128)),
    *(attention(N=10, D=D, dtype=F32) for D in (32, 64, 80, 128, 256)),
    attention(N=40, G=4, D=128, dtype=F32),
    attention(N=10, G=4, D=128, window=4096, t=8192),  # mistral
    attention(N=10, G=2, D=256, window=4096, softcap=50.0, t=8192),  # gemma 2
    attention(N=10, G=4, D=256, window=1024, t=8192),  # gemma 3
    attention(N=10, G=8, D=64, window=128, sinks=True, t=8192),  # gpt-oss
    attention(N=10, G=8, D=64, sinks=True, t=8192),
    attention(N=512, G=2, D=256, softcap=50.0, t=8192),  # a chunk of a prefill
    *(topk(V, 10) for V in (32000, 50272, 128256, 262144)),
    *(topk(V, k) for V in (50272, 262144) for k in (1, 40, 128)),
    topk(128256, 10, dtype=F16),
    topk(128256, 10, dtype=F32),
    topk(128256, 10, B=64),
    topk(50257, 10),  # GPT-2: odd
    topk(50257, 10, B=8),
    *(choice(k, H) for k in (10, 40, 128) for H in (768, 4096)),
    choice(10, 4096, dtype=F32),
    committing(12, 12, 64),  # OPT-125M
    committing(24, 16, 64),  # OPT-350M
    committing(32, 8, 128),  # Llama-3-8B
    committing(32, 32, 80),  # OPT-2.7B
    committing(32, 32, 128, dtype=F32),
    recording(10),
    recording(128, B=64),
]
# Whole layers, of which tests/kernels/test_layers_compiled.py takes some.
LAYERS = [
    *(layers(model) for model in MODELS),
    layers("opt-2.7b", N=1),
    layers("llama-7b", dtype=F16),
    *(layers(model, dtype=F32) for model in ("opt-350m", "opt-2.7b", "llama-7b", "heads of 256")),
    *(layers(model, rank=16, joined=True) for model in MODELS),
    *(layers("llama-7b", rank=rank, joined=True) for rank in (32, 64)),
    *(layers("llama-7b", rank=rank, joined=True, dtype=F32) for rank in (16, 64)),
]


def main() -> None:
    """Print what every case compiles to, as Markdown: read from the binaries, so none is a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    cases = [*CASES, *LAYERS]
    parser.add_argument("--op", help="of one op only", choices=sorted({c.op for c in cases}))
    parser.add_argument("--case", default="", help="of cases whose name begins so only")
    options = parser.parse_args()
    wanted = options.op
    warnings.simplefilter("ignore")
    header = "| case | kernel | sm | warps | stages | registers | spilled | shared | fit | limit |"
    print(header, re.sub("[^|]+", " --- ", header), sep="\n")
    for case in cases:
        chosen = wanted in (None, case.op) and case.name.startswith(options.case)
        for arch in MACHINES if chosen else ():
            for kernel in compile_case(case, arch):
                cells = [f"{case.op}: {case.name}", kernel.name, arch, kernel.warps, kernel.stages]
                cells += [kernel.registers, kernel.spilled, kernel.shared_memory]
                cells += [kernel.programs_per_multiprocessor, kernel.limit]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
