"""The ops of a decode step, registered as ``torch.ops.args_fast.*``.

Each op is opaque to torch.compile (a schema and a fake implementation); what runs inside is chosen
by the table in ``backends`` at every call.
"""

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


def _register(op: str) -> None:
    _library.define(op + SCHEMAS[op])
    for device in ("cpu", "cuda"):

        def run(*args: Any, _device: str = device) -> Any:
            with torch.cuda.device_of(args[0]):  # kernels go to the current one; not on the CPU
                return implementation(op, _device, args)(*args)

        _library.impl(op, run, device.upper())


for _op in SCHEMAS:
    _register(_op)
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


topk_logprobs = torch.ops.args_fast.topk_logprobs
branch_attention = torch.ops.args_fast.branch_attention
select = torch.ops.args_fast.select
commit = torch.ops.args_fast.commit
select_commit = torch.ops.args_fast.select_commit
