"""Where a model's weights lie on the CPU: in one piece of memory, in large pages.

A step reads every weight once, in order. Scattered over small pages, that takes up to a fifth
longer in float32 (docs/performance.md): more addresses to translate, and fewer streams that the
processor can foresee. Only models that args-fast has loaded itself are moved; those of a caller
stay where they are.
"""

import torch
from torch import Tensor, nn

from args_fast import large_pages

LINE = 64  # bytes of a cache line, at which each weight begins


def gather(model: nn.Module) -> None:
    """Move the weights of a model on the CPU into one piece of memory; those of another device
    stay. The parameters are the same objects afterwards, and tied ones still share their memory."""
    weights = [w for w in (*model.parameters(), *model.buffers()) if _can_move(w)]
    places: dict[tuple[int, int], int] = {}
    size = 0
    for weight in weights:
        if _key(weight) not in places:
            places[_key(weight)] = size
            size += -(-weight.nbytes // LINE) * LINE
    if size < large_pages.LARGE_PAGE:
        return
    memory = large_pages.allocate(size)
    moved = {key: memory[begin : begin + key[1]] for key, begin in places.items()}
    for key, weight in [(_key(weight), weight) for weight in weights]:
        target = moved[key].view(weight.dtype).view(weight.shape)
        target.copy_(weight.data)
        weight.data = target


def _can_move(weight: Tensor) -> bool:
    is_plain = type(weight) in (Tensor, nn.Parameter) and weight.layout == torch.strided
    return is_plain and weight.device.type == "cpu" and weight.is_contiguous() and weight.nbytes > 0


def _key(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight.nbytes
