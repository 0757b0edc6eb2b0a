"""The product of few rows with the weights of a linear layer, where torch's own is slow.

Apart from the ops of a step, because it stands in for one of torch's own that works everywhere:
``torch.nn.functional.linear`` says what it computes. It runs only where ``args_fast.models.linear``
sends a product to it. There are two:

- ``linear`` is the Triton kernel (kernels/triton/linear.py), for CUDA devices;
- ``cpu_linear`` is the C++ kernel (csrc/cpu/linear.h), None where it was not built. It has any
  number of rows, and weights of 8 bits too: cpu_linear(x, weight, bias, scale). The bits of a row
  depend on neither the other rows nor the number of threads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from args_fast.ops import cpp

# x [..., K] of 1 to 64 rows; weight [N, K]; bias [N] -> [..., N], all f32, bf16 or f16. arrivals
# i32, zeros: the counters that the programs of one call meet by. They are zeros again when it ends,
# so that nothing is mutated as far as torch.compile has to know.
SCHEMA = "linear(Tensor x, Tensor weight, Tensor? bias, Tensor arrivals) -> Tensor"

_library = torch.library.Library("args_fast", "FRAGMENT")
_library.define(SCHEMA)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, arrivals: Tensor) -> Tensor:
    from args_fast.kernels.linear import linear  # Triton, which not every platform has

    with torch.cuda.device_of(x):  # the kernel goes to the current one; not on the CPU
        return linear(x, weight, bias, arrivals)


for _key in ("CPU", "CUDA"):
    _library.impl("linear", _run, _key)


def _fake(x: Tensor, weight: Tensor, *others: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


torch.library.register_fake("args_fast::linear", _fake)
linear = torch.ops.args_fast.linear

cpu_linear: Callable[..., Tensor] | None = None
if cpp.status() == "built":
    torch.library.register_fake("args_fast_cpp::linear", _fake)
    cpu_linear = torch.ops.args_fast_cpp.linear.default
