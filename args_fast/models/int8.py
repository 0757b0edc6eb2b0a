"""Linear layers whose weights are integers of 8 bits, on the CPU: a quarter of float32's bytes to
read for each token. Activations stay floating point, so what such a layer computes is the product
with its dequantized weight."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from args_fast.ops.linear import cpu_linear

LARGEST = 127  # -128 is not used: scales are symmetric


class Int8Linear(nn.Module):
    """A linear layer with a weight of integers.

    Args:
        linear: whose weight is quantized; its bias is taken as it is.

    Attributes:
        weight: [N, K] int8, a buffer.
        scale: [N] float32, a buffer: row n stands for scale[n] * weight[n].
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantized(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N], by the C++ kernel for any number of rows."""
        if cpu_linear is None or x.device.type != "cpu":
            return F.linear(x, self.dequantized().to(x.dtype), self.bias)
        return cpu_linear(x, self.weight, self.bias, self.scale)

    def dequantized(self) -> Tensor:
        """The weight that the layer multiplies with: [N, K] float32."""
        return self.weight.float() * self.scale[:, None]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> the nearest integers [N, K] int8, and a scale for each row [N] float32."""
    rows = weight.float()
    scale = rows.abs().amax(dim=1) / LARGEST
    scale = torch.where(scale > 0, scale, 1.0)
    return (rows / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def quantize_linears(module: nn.Module) -> None:
    """Replace all linear layers within by layers of int8, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
