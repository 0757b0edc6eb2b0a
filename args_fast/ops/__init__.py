"""The ops of a decode step, registered as ``torch.ops.args_fast.*``.

Each op is opaque to torch.compile (a schema and a fake implementation); what runs inside is chosen
by the table in ``backends`` at every call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from args_fast.ops import cpp, cuda, triton
from args_fast.ops.backends import implementation, use_backend
from args_fast.ops.schemas import SCHEMAS

__all__ = [
    "branch_attention",
    "commit",
    "select",
    "select_commit",
    "topk_logprobs",
    "use_backend",
]

_library = torch.library.Library("args_fast", "DEF")


def _register(op: str) -> Callable:
    """Make an op known to torch. What is returned calls it without torch's dispatcher, which takes
    as long as a small kernel; but while a model is compiled, with it."""
    _library.define(op + SCHEMAS[op])

    def run(*args: Any) -> Any:
        if args[0].device.type == "cpu":
            return implementation(op, "cpu", args)(*args)
        with torch.cuda.device_of(args[0]):  # kernels go to the current one
            return implementation(op, "cuda", args)(*args)

    for device in ("CPU", "CUDA"):
        _library.impl(op, run, device)
    registered = getattr(torch.ops.args_fast, op)
    return lambda *args: registered(*args) if torch.compiler.is_compiling() else run(*args)


topk_logprobs = _register("topk_logprobs")
branch_attention = _register("branch_attention")
select = _register("select")
commit = _register("commit")
select_commit = _register("select_commit")
cpp.load()
cuda.load()
triton.load()


@torch.library.register_fake("args_fast::topk_logprobs")
def _(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], k)
    return (
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty(shape, dtype=torch.int64),
    )


@torch.library.register_fake("args_fast::branch_attention")
def _(q: Tensor, *others: object) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@torch.library.register_fake("args_fast::select")
@torch.library.register_fake("args_fast::select_commit")
def _(hidden: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
    B = hidden.shape[0]
    return (
        hidden.new_empty(B, dtype=torch.int64),
        hidden.new_empty(B, dtype=torch.float32),
        hidden.new_empty(B, dtype=torch.float32),
    )


@torch.library.register_fake("args_fast::commit")
def _(*args: object) -> None:
    return None
