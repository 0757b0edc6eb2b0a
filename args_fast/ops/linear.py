"""The product of few rows with the weights of a linear layer, where torch's own is slow: on the CPU
(csrc/cpu/linear.h).

Apart from the ops of a step, because it stands in for one of torch's own that works everywhere:
``torch.nn.functional.linear`` says what it computes. It runs only where ``args_fast.models.linear``
sends a product to it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from args_fast.ops import cpp

# cpu_linear(x [..., K], weight [N, K], bias [N] or None, scale) -> [..., N], all f32, bf16 or f16;
# None where it was not built. It has any number of rows, and weights of 8 bits with scale [N] f32.
# The bits of a row depend on neither the other rows nor the number of threads.
cpu_linear: Callable[..., Tensor] | None = None
if cpp.status() == "built":

    @torch.library.register_fake("args_fast_cpp::linear")
    def _(x: Tensor, weight: Tensor, *others: Tensor | None) -> Tensor:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    cpu_linear = torch.ops.args_fast_cpp.linear.default
