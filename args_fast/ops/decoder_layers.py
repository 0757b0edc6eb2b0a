"""All decoder layers of a model over the rows of a tail, as one op of the CPU.

Apart from the ops of a step, because it stands in for a model's own modules, which work everywhere:
``args_fast.models.fused`` sends the models to it that it knows. ``args_fast.ops.plain_layers`` says
what it computes.
"""

from collections.abc import Callable

import torch

from args_fast.ops import cpp, plain_layers
from args_fast.ops.backends import forced_backend


def decoder_layers() -> Callable[..., None] | None:
    """What runs the op: the C++ kernel (csrc/cpu/decoder_layers.h), plain torch where that backend
    is forced, None where another one is forced or the kernel was not built."""
    forced = forced_backend()
    if forced == "torch":
        return plain_layers.decoder_layers
    if forced not in (None, "cpp") or cpp.status() != "built":
        return None
    return torch.ops.args_fast_cpp.decoder_layers.default
