"""What a step launches, and what each of those kernels is: counted and compiled, not run.

Two things are looked at, both on a machine without a GPU. The operations of a step are counted by
running one on the CPU, in bfloat16, with models of the true architecture and depth and a tiny
width. The kernels are compiled for sm_80 and sm_90 at the sizes of the headline pairs and read from
their binaries. Both go to a file of data, which bench/predict.py computes from.
"""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from triton import knobs

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.bench import linear_bench, models
from args_fast.bench.resources import (
    MACHINES,
    Case,
    Kernel,
    attention,
    choice,
    committing,
    compile_case,
    product,
    topk,
)
from args_fast.engine import runner

PAIRS = (("opt-2.7b", "opt-350m"), ("opt-2.7b", "opt-125m"), ("llama-7b", "llama-7b"))
PROMPTS = (128, 1900)
K = 10
ROOT = Path(__file__).resolve().parent.parent


# ---- operations ----------------------------------------------------------------------------------


class _Trace(TorchDispatchMode):
    """The names of operations that launch something on a device: those that write. What only looks
    at memory in another way, or makes it, launches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        ours = func.namespace == "args_fast"
        if ours or func._schema.is_mutable or (name != "empty" and not _looks(out, args)):
            self.names.append(name)
        return out


def _looks(out: Any, args: Any) -> bool:
    if not isinstance(out, torch.Tensor):
        return False
    inputs = (x for x in args if isinstance(x, torch.Tensor))
    return any(out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in inputs)


@dataclass(frozen=True)
class Launches:
    """Operations of one part of a step. runs: how many there would be of the small ones if all that
    follow one another were one, which is the most that fusing them can do."""

    linear: int
    attention: int
    small: int
    runs: int


def count_step(lm: str, rm: str) -> dict[str, Launches]:
    """The operations of one step, by part: "lm" up to its logits, "rm" from the candidates to the
    hidden states, "rest" the five ops' own launches not counted among them."""
    decoder = ArgsDecoder(
        AutoModelForCausalLM.from_config(_narrow(lm), dtype=torch.bfloat16).eval(),
        AutoModelForSequenceClassification.from_config(_narrow(rm), dtype=torch.bfloat16).eval(),
    )
    traces: list[list[str]] = []
    step = runner.step

    def traced(*arguments: Any) -> None:
        with _Trace() as trace:
            step(*arguments)
        traces.append(trace.names)

    config = DecodingConfig(k=K, w=1.0, max_new_tokens=1, eos_token_ids=[])
    with mock.patch.object(runner, "step", traced):
        decoder.generate([list(range(5, 20))], config)
    names = traces[-1]
    chosen, scored = names.index("topk_logprobs"), names.index("select_commit")
    kept = names.index("commit")
    parts = {
        "lm": names[:kept],
        "rm": names[chosen + 1 : scored],
        "rest": names[kept + 1 : chosen] + names[scored + 1 :],
    }
    return {part: _tally(found) for part, found in parts.items()}


def _tally(names: list[str]) -> Launches:
    counts = Counter(names)
    large = ("linear", "branch_attention")
    small = [name not in large for name in names]
    runs = sum(now and not before for now, before in zip(small, [False, *small], strict=False))
    return Launches(*(counts[name] for name in large), sum(small), runs)


def _narrow(name: str) -> PreTrainedConfig:
    """The architecture and the depth of a model at a width of no interest."""
    at: Any = models.config(name)
    at.vocab_size = 128
    at.num_attention_heads = 4
    if at.model_type == "opt":
        at.word_embed_proj_dim = 64 if at.word_embed_proj_dim == at.hidden_size else 32
        at.ffn_dim = 64
    else:
        at.num_key_value_heads, at.head_dim, at.intermediate_size = 4, 16, 64
    at.hidden_size = 64
    return at


# ---- kernels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sized:
    """A case with its sizes by name."""

    sizes: dict[str, Any]
    case: Case

    @property
    def key(self) -> str:
        return key(self.case.op, **self.sizes)


def key(op: str, **sizes: Any) -> str:
    return f"{op} " + " ".join(f"{name}={value}" for name, value in sizes.items())


def heads(name: str) -> dict[str, int]:
    """Hkv, G and D of a model."""
    at = models.config(name)
    Hq, H = at.num_attention_heads, at.hidden_size
    Hkv = getattr(at, "num_key_value_heads", None) or Hq
    return {"Hkv": Hkv, "G": Hq // Hkv, "D": getattr(at, "head_dim", None) or H // Hq}


def hidden_size(name: str) -> int:
    """Of the state that the reward head reads."""
    at = models.config(name)
    return getattr(at, "word_embed_proj_dim", None) or at.hidden_size


def products(name: str, head: bool) -> dict[linear_bench.Shape, int]:
    """The linear layers of a pass, each with its number. ``head``: the language model's too."""
    at = models.config(name)
    layers = linear_bench.shapes({name: at})
    found = {shape: counts[name] for shape, counts in layers.items()}
    if not head:
        found = {shape: n for shape, n in found.items() if at.vocab_size != shape.N}
    return found


def merged(name: str) -> linear_bench.Shape:
    """Queries, keys and values in one product, which the models do not do."""
    at = models.config(name)
    return linear_bench.Shape(3 * at.hidden_size, at.hidden_size, at.model_type == "opt")


def pages(t: int) -> int:
    """How wide the engine makes the page table: pages of 16, a power of two of them."""
    return 1 << max(0, -(-(t + 1) // 16) - 1).bit_length()


def attends(name: str, rows: int, t: int, batch: int = 1) -> Sized:
    """One layer's attention; the kernel is divided by the width of the page table."""
    sizes = {"B": batch, "N": rows, **heads(name), "t": t}
    return Sized(sizes, attention(**{**sizes, "t": 16 * pages(t)}))


def wanted() -> Iterator[Sized]:
    """The kernels of the headline pairs at batch 1."""
    for lm, rm in PAIRS:
        for t in PROMPTS:
            for name, rows in ((lm, 1), (lm, K), (rm, K)):  # the second: lookahead
                yield attends(name, rows, t)
        for name, rows, head in ((lm, 1, True), (lm, K, True), (rm, K, False)):
            for shape in [*products(name, head), merged(name)]:
                sizes = {"M": rows, "N": shape.N, "K": shape.K, "bias": shape.bias}
                yield Sized(sizes, product(**sizes))
        V = models.config(lm).vocab_size
        yield Sized({"V": V, "k": K}, topk(V, K))
        yield Sized({"k": K, "H": hidden_size(rm)}, choice(K, hidden_size(rm)))
        for name in (lm, rm):
            L, at = models.config(name).num_hidden_layers, heads(name)
            yield Sized({"L": L, "Hkv": at["Hkv"], "D": at["D"]}, committing(L, at["Hkv"], at["D"]))


def compiled(sized: Sized) -> dict[str, list[dict[str, Any]]]:
    """Its kernels on every architecture."""
    return {str(arch): [facts(k) for k in compile_case(sized.case, arch)] for arch in MACHINES}


def facts(kernel: Kernel) -> dict[str, Any]:
    """What predictions need of a kernel, as JSON."""
    found = asdict(kernel)
    del found["sass"], found["arch"]
    return found | {
        "fit": kernel.programs_per_multiprocessor,
        "limit": kernel.limit,
        "loads": {str(width): n for width, n in sorted(kernel.loads.items(), reverse=True)},
        "copies": {str(width): n for width, n in sorted(kernel.copies.items(), reverse=True)},
        "tensor_cores": kernel.tensor_cores,
        "loop": kernel.loop,
        "straight": kernel.straight,
    }


# ---- CUDA C++ ------------------------------------------------------------------------------------

# File, its kernel for bfloat16 (a part of the mangled name), threads of a block.
CUDA = {
    "topk_logprobs": ("topk_kernelINS0_8BFloat16E", 256),
    "select_commit": ("select_commit_kernelINS0_8BFloat16ES3_E", 512),
}


def compiled_cuda(op: str, arch: int) -> dict[str, Any]:
    """The bfloat16 kernel of an op in csrc/cuda; its programs depend on the call and stay 1."""
    wanted, threads = CUDA[op]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "code.cubin")
        command = ["nvcc", "-cubin", "-std=c++20", "-O3", f"-arch=sm_{arch}"]
        subprocess.run(
            [*command, str(ROOT / "csrc" / "cuda" / f"{op}.cu"), "-o", str(cubin)],
            check=True,
            capture_output=True,
        )
        listing = [
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, kind, str(cubin)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for kind in ("--dump-resource-usage", "--dump-sass")
        ]
    usage = re.search(rf"Function \w*{wanted}\w*:\s*\n?\s*(.*)", listing[0])
    sass = re.search(rf"Function : \w*{wanted}.*?(?=Function :|\Z)", listing[1], re.S)
    if usage is None or sass is None:
        raise LookupError(f"{op}.cu has no kernel {wanted}: {listing[0]}")
    used = {name: int(value) for name, value in re.findall(r"\b(\w+):(\d+)", usage[1])}
    return facts(
        Kernel(
            name=op,
            arch=arch,
            warps=threads // 32,
            stages=1,
            registers=used["REG"],
            spilled=used["STACK"] + used["LOCAL"],
            shared_memory=used["SHARED"],
            sass=sass[0],
        )
    )


def collect() -> dict[str, Any]:
    """Everything, as the data file holds it."""
    found = {
        "versions": {name: version(name) for name in ("triton", "transformers")},
        "steps": {
            f"{lm} + {rm}": {part: asdict(n) for part, n in count_step(lm, rm).items()}
            for lm, rm in PAIRS
        },
        "kernels": {sized.key: compiled(sized) for sized in wanted()},
        "cuda": {},
    }
    if shutil.which("nvcc"):
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
        found["versions"]["nvcc"] = (re.search(r"V([\d.]+)", text) or ["", "?"])[1]
        found["cuda"] = {
            op: {str(arch): compiled_cuda(op, arch) for arch in MACHINES} for op in CUDA
        }
    return found
