"""Small tensors between the host and a device, without either waiting for the other.

On CUDA a copy from or to memory that is not pinned waits for everything the device has to do.
"""

from typing import Any

import torch
from torch import Tensor


def send(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor on the device, from (lists of) numbers."""
    return _pinned(torch.tensor(values, dtype=dtype, device="cpu"), device).to(
        device, non_blocking=True
    )


def send_into(target: Tensor, host: Tensor) -> None:
    """Overwrite a device tensor with a host tensor of the same shape."""
    target.copy_(_pinned(host, target.device), non_blocking=True)


def fetch(tensor: Tensor) -> Tensor:
    """A copy on the host. The copy of a CUDA tensor is complete once the stream has reached it."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)


def _pinned(host: Tensor, device: torch.device) -> Tensor:
    return host.pin_memory() if device.type == "cuda" else host
