"""``torch.ops.args_fast.linear``: the product of few rows with the weights of a linear layer.

Apart from the four ops of a step, because it stands in for one of torch's own that works
everywhere: it has no plain implementation but ``torch.nn.functional.linear``, and runs only where
``args_fast.models.linear`` sends a product to it.
"""

import torch
from torch import Tensor

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


@torch.library.register_fake("args_fast::linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, arrivals: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


linear = torch.ops.args_fast.linear
