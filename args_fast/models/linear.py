"""Which linear layers go to the C++ kernel (csrc/cpu/linear.h) instead of torch: on the CPU every
product of up to 64 rows, and in float32 of any number where torch's products of many rows are
slower too.

The models are not touched: within the context of ``few_rows``, calls of
``torch.nn.functional.linear`` are looked up, and those that the kernel does not take go to torch.
"""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from args_fast.errors import BackendError
from args_fast.ops import cpp
from args_fast.ops.linear import cpu_linear

ENVIRONMENT = "ARGS_FAST_LINEAR"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 64  # the most rows in 16 bits
# In float32 it is any number on an AMD EPYC. On an Intel Xeon, which has tiles, a prompt of 1,024
# tokens takes three quarters of the time with torch's products.
FLOAT32_ROWS = ROWS if cpu_linear is not None and cpp.kernels() == "amx" else math.inf


class FewRows(TorchFunctionMode):
    """While it is entered, a linear layer is computed by ``product`` where that takes it."""

    def __init__(self, product: Callable[..., Tensor]) -> None:
        super().__init__()
        self.product = product

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear:
            arguments = _arguments(*args, **kwargs)
            if takes(*arguments):
                return self.product(*arguments)
        return func(*args, **kwargs)


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel makes this product, of a linear layer's arguments."""
    # Quantized weights are subclasses, with a product of their own.
    if type(weight) not in (Tensor, nn.Parameter) or weight.dim() != 2 or x.dim() < 1:
        return False
    K = weight.shape[1]
    if x.shape[-1] != K or K == 0 or weight.stride(1) != 1:
        return False
    rows = x.numel() // K
    return (
        rows > 0
        and rows <= (FLOAT32_ROWS if x.dtype == torch.float32 else ROWS)
        and x.dtype == weight.dtype
        and x.dtype in DTYPES
        and (bias is None or bias.dtype == x.dtype)
    )


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of torch.nn.functional.linear, by position or by name."""
    return input, weight, bias


def few_rows(device: torch.device) -> AbstractContextManager:
    """The context to enter around the forward passes of a model on this device; it can be entered
    again. It does nothing on CUDA, where the kernel was not built, and where the environment
    variable ARGS_FAST_LINEAR is "torch". Raises BackendError where that is another word."""
    asked = os.environ.get(ENVIRONMENT) or None
    if asked not in (None, "torch"):
        raise BackendError(
            f"{ENVIRONMENT} is {asked!r}; it must be 'torch', which leaves linear layers to torch, "
            "or not set, for the faster kernel"
        )
    if asked == "torch" or device.type != "cpu" or cpu_linear is None:
        return nullcontext()
    return FewRows(cpu_linear)
