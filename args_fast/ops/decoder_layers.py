"""All decoder layers of a model over the rows of a tail, as one op of the CPU.

Apart from the ops of a step, because it stands in for a model's own modules, which work everywhere:
``args_fast.models.fused`` sends the models to it that it knows. ``args_fast.ops.plain_layers`` says
what it computes.
"""

from collections.abc import Callable

import torch

from args_fast.ops import cpp
from args_fast.ops.backends import forced_backend


def decoder_layers() -> Callable[..., None] | None:
    """The C++ kernel (csrc/cpu/decoder_layers.h); None where it was not built, or where another
    backend is forced: then models run through their modules, and these through its ops."""
    if forced_backend() not in (None, "cpp") or cpp.status() != "built":
        return None
    return torch.ops.args_fast_cpp.decoder_layers.default
