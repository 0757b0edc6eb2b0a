"""Which linear layers of few rows go to a kernel of ours instead of torch.

On the CPU that is the C++ kernel (csrc/cpu/linear.h) for every product of up to 64 rows, and in
float32 of any number, because torch's products of many rows are slower there too; on CUDA it is the
Triton kernel (kernels/triton/linear.py) where a measurement on that very device says that it is
faster than cuBLAS. The table of measurements (linear.json next to this file) names the
exceptions of the one and the uses of the other. ``scripts/linear_table.py`` makes it of what was
measured on a GPU.

The models are not touched: within the context of ``few_rows``, calls of
``torch.nn.functional.linear`` are looked up, and those that no kernel takes go to torch.
"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from args_fast.errors import BackendError
from args_fast.ops import cpp
from args_fast.ops.linear import cpu_linear, linear

ENVIRONMENT = "ARGS_FAST_LINEAR"
FILE = Path(__file__).with_suffix(".json")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 64  # the most rows that are routed, but those of float32 to the C++ kernel
ARRIVALS = 4096  # counters of the Triton kernel (args_fast.kernels.linear)


@dataclass(frozen=True)
class Entry:
    """One line of the table: on ``device``, products of first ... last rows, type dtype, with
    weights [N, K] are best made by ``use``: "triton", "cpp" or "torch". ``device`` is the name of a
    GPU, or for CPUs the set of kernels that they run (``args_fast.ops.cpp.kernels``). ``measured``
    names the file of results that says so."""

    device: str
    dtype: str
    first: int
    last: int
    N: int
    K: int
    use: str
    measured: str


def read_table(file: Path = FILE) -> list[Entry]:
    return [Entry(**entry) for entry in json.loads(file.read_text())]


def write_table(entries: Iterable[Entry], file: Path = FILE) -> None:
    """One entry a line, sorted, so that two versions compare well."""
    lines = sorted(json.dumps(asdict(entry)) for entry in entries)
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


Chosen = Callable[[torch.dtype, int, int, int], bool]


class FewRows(TorchFunctionMode):
    """While it is entered, a linear layer whose product ``chosen`` (dtype, rows, N, K) takes is
    computed by our kernel.

    Args:
        device: where the model is.
        chosen: the products that the kernel makes.
        use: "triton" or "cpp", the kernel. There is one context for each model: the counters of the
            Triton kernel are here, and two streams must not share them.
    """

    def __init__(self, device: torch.device, chosen: Chosen, use: str = "triton") -> None:
        super().__init__()
        self.chosen = chosen
        self.cpu_linear = cpu_linear if use == "cpp" else None
        self.arrivals = torch.zeros(
            ARRIVALS if use == "triton" else 0, dtype=torch.int32, device=device
        )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear:
            x, weight, bias = _arguments(*args, **kwargs)
            if self._takes(x, weight, bias):
                if self.cpu_linear is not None:
                    return self.cpu_linear(x, weight, bias)
                return linear(x, weight, bias, self.arrivals)
        return func(*args, **kwargs)

    def _takes(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        # Quantized weights are subclasses, with a product of their own.
        if type(weight) not in (Tensor, nn.Parameter) or weight.dim() != 2 or x.dim() < 1:
            return False
        N, K = weight.shape
        if x.shape[-1] != K or K == 0 or weight.stride(1) != 1:
            return False
        rows = x.numel() // K
        return (
            rows > 0
            and (rows <= ROWS or (self.cpu_linear is not None and x.dtype == torch.float32))
            and x.dtype == weight.dtype
            and x.dtype in DTYPES
            and (bias is None or bias.dtype == x.dtype)
            and self.chosen(x.dtype, rows, N, K)
        )


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of torch.nn.functional.linear, by position or by name."""
    return input, weight, bias


def few_rows(
    device: torch.device, use: str | None = None, table: list[Entry] | None = None
) -> AbstractContextManager:
    """The context to enter around the forward passes of one model; it can be entered again.

    Args:
        device: where the model is.
        use: "triton" or "cpp" for every product that this kernel can make, "torch" for none, None
            for the environment variable ARGS_FAST_LINEAR, or where that is not set for the table.
        table: entries of any devices; None for those measured so far.

    Raises:
        BackendError: ``use`` is another word, or the kernel is asked for where it cannot run.
    """
    use = use or os.environ.get(ENVIRONMENT) or None
    if use not in (None, "triton", "cpp", "torch"):
        raise BackendError(
            f"linear layers are asked to use {use!r}; {ENVIRONMENT} must be 'triton' or 'cpp' "
            "(everywhere), 'torch', or not set, for the faster by measurement"
        )
    if use == "triton":
        _require_triton(device)
        return FewRows(device, _always)
    if use == "cpp":
        _require_cpp(device)
        return FewRows(device, _always, "cpp")
    if use == "torch" or device.type not in ("cpu", "cuda"):
        return nullcontext()
    entries = read_table() if table is None else table
    if device.type == "cpu":
        return _on_cpu(device, entries)
    return _on_cuda(device, entries) if device.type == "cuda" else nullcontext()


def _on_cpu(device: torch.device, entries: list[Entry]) -> AbstractContextManager:
    """The C++ kernel, but for the products of which a measurement says that torch is faster."""
    if cpu_linear is None:
        return nullcontext()
    name = cpp.kernels()
    losers = [entry for entry in entries if entry.device == name and entry.use == "torch"]
    lost = chosen_by(losers)
    return FewRows(device, lambda *product: not lost(*product), "cpp")


def _on_cuda(device: torch.device, entries: list[Entry]) -> AbstractContextManager:
    """The Triton kernel for the products of which a measurement says that it is faster."""
    name = torch.cuda.get_device_name(device)
    winners = [entry for entry in entries if entry.device == name and entry.use == "triton"]
    if not winners:
        return nullcontext()
    _require_triton(device)
    return FewRows(device, chosen_by(winners))


def chosen_by(entries: Iterable[Entry]) -> Chosen:
    """Whether one of the entries covers (dtype, rows, N, K)."""
    covered: dict[tuple[torch.dtype, int, int], list[tuple[int, int]]] = {}
    for entry in entries:
        key = getattr(torch, entry.dtype), entry.N, entry.K
        covered.setdefault(key, []).append((entry.first, entry.last))
    return partial(_covers, covered)


def _always(dtype: torch.dtype, rows: int, N: int, K: int) -> bool:
    return True


def _covers(
    covered: dict[tuple[torch.dtype, int, int], list[tuple[int, int]]],
    dtype: torch.dtype,
    rows: int,
    N: int,
    K: int,
) -> bool:
    return any(first <= rows <= last for first, last in covered.get((dtype, N, K), []))


def _require_cpp(device: torch.device) -> None:
    if device.type != "cpu":
        raise BackendError(
            f"linear layers are asked to use 'cpp' on {device}; it runs on the CPU. Unset "
            f"{ENVIRONMENT}."
        )
    if cpu_linear is None:
        raise BackendError(
            f"linear layers are asked to use 'cpp', which is {cpp.status()}; or unset {ENVIRONMENT}"
        )


def _require_triton(device: torch.device) -> None:
    if find_spec("triton") is None:
        raise BackendError(
            f"linear layers are asked to use 'triton', which is not installed; pip install triton, "
            f"or unset {ENVIRONMENT}"
        )
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            "linear layers are asked to use 'triton' on the CPU, where it runs only in its "
            f"interpreter: set TRITON_INTERPRET=1 (slow, for tests), or unset {ENVIRONMENT}"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise BackendError(
            f"linear layers are asked to use 'triton' on {torch.cuda.get_device_name(device)}; the "
            f"kernel needs compute capability 8.0 or higher. Unset {ENVIRONMENT}."
        )
