"""All decoder layers of a model over the rows of a tail, as one op.

Apart from the ops of a step, because it stands in for a model's own modules, which work everywhere:
``args_fast.models.fused`` sends the models to it that it knows. ``args_fast.ops.plain_layers`` says
what it computes. On the CPU it is one call of C++ (csrc/cpu/decoder_layers.h), on CUDA a sequence
of Triton kernels (kernels/triton/decoder_layers.py).
"""

import math
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from args_fast.ops import cpp, triton
from args_fast.ops.backends import forced_backend
from args_fast.ops.schemas import LAYER_WEIGHTS

DecoderLayers = Callable[..., None]
# ids [B, N], the embeddings of tokens [V, H]; those of positions [.., H], positions [B, N] and the
# row of position 0, or None, None and 0: see args_fast.kernels.decoder_layers.
Embedding = tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]
ROWS = 512  # that Triton's kernels take at a time: what they hold meanwhile grows with them


def backend(device: str) -> str | None:
    """What runs the op on a device type: "cpp", "triton", or None where it is not built, or where
    another backend is forced. Then models run through their modules, and these through its ops."""
    built = cpp.status() if device == "cpu" else triton.status()
    best = "cpp" if device == "cpu" else "triton"
    forced = forced_backend()
    if forced == "triton" and device == "cpu" and triton.interpreted():
        return "triton"
    return best if built == "built" and forced in (None, best) else None


def faster_rows(device: torch.device) -> float:
    """Rows of a pass up to which the op is faster than a model's own modules: any number in C++, in
    Triton what was measured on the device's architecture, 0 where nothing was."""
    name = backend(device.type)
    if name == "triton":
        rows: int = _kernels().faster_rows(device)
        return rows
    return math.inf if name == "cpp" else 0


def decoder_layers(device: torch.device | str = "cpu") -> DecoderLayers:
    """The op of a device that has a ``backend``, for one caller: calls of what is returned must not
    run at the same time."""
    device = torch.device(device)
    if backend(device.type) == "triton":
        return InTriton(device)
    return InCpp()


def unsupported(weights: list[Tensor], head_size: int) -> str | None:
    """Why the op cannot take a model's layers, or None.

    Args:
        weights: LAYER_WEIGHTS of each layer.
        head_size: elements of a head.
    """
    device = weights[0].device.type
    name = backend(device)
    if name is None:
        status = cpp.status() if device == "cpu" else triton.status()
        return f"the op is not here ({status}), or another backend is forced"
    if name == "cpp":
        return None
    reason: str | None = _kernels().unsupported(by_name(weights), head_size)
    return reason


def by_name(weights: list[Tensor]) -> list[dict[str, Tensor | None]]:
    """Each layer's tensors by the names of LAYER_WEIGHTS; None for those that it does not have."""
    count = len(LAYER_WEIGHTS)
    return [
        {
            name: weight if weight.numel() else None
            for name, weight in zip(LAYER_WEIGHTS, weights[at : at + count], strict=True)
        }
        for at in range(0, len(weights), count)
    ]


def _kernels() -> Any:
    return import_module("args_fast.kernels.decoder_layers")  # Triton, which is not everywhere


class InCpp:
    """The op in C++. The library holds the tensors of a list from its first call on, as torch takes
    longer to hand over hundreds of them than a small layer takes; so a list stays as it is."""

    LISTS = 4  # that are held at a time: a model has one, an adapted one up to three

    def __init__(self) -> None:
        self._run = torch.ops.args_fast_cpp.decoder_layers.default
        self._held: dict[tuple[int, int], _Held] = {}  # by the identity of its lists

    def __call__(self, hidden: Tensor, weights: list[Tensor], *others: Any) -> None:
        *options, low_rank, adapted = others
        key = id(weights), id(low_rank)
        if key not in self._held:
            if len(self._held) == self.LISTS:
                del self._held[next(iter(self._held))]
            self._held[key] = _Held(weights, low_rank)
        self._run(hidden, self._held[key].number, *options, adapted)


class _Held:
    """Tensors of layers that the library holds as long as this lives.

    Attributes:
        number: by which the op finds them.
    """

    def __init__(self, weights: list[Tensor], low_rank: list[Tensor]) -> None:
        self._lists = weights, low_rank  # kept, as ids are those of living objects
        ops = torch.ops.args_fast_cpp
        self.number: int = ops.hold_layers.default(weights, low_rank)
        weakref.finalize(self, ops.release_layers.default, self.number)


class InTriton:
    """The op in Triton, with the counters that its programs meet by. ``hidden`` may be of the
    weights' type, and be made from embeddings, which costs no launch more."""

    def __init__(self, device: torch.device) -> None:
        self._run = _kernels().decoder_layers
        self._counters = torch.zeros(_kernels().COUNTERS, dtype=torch.int32, device=device)

    def __call__(
        self,
        hidden: Tensor,
        weights: list[Tensor],
        tail_k: Tensor,
        tail_v: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        page_table: Tensor,
        lengths: Tensor,
        mask: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        *others: Any,
        embedding: Embedding | None = None,
    ) -> None:
        *options, low_rank, adapted = others
        assert not [*low_rank, *adapted]  # args_fast.models.fused leaves adapters to the C++ op
        layers = by_name(weights)
        texts = max(1, ROWS // max(1, hidden.shape[1]))
        with torch.cuda.device_of(hidden):  # kernels go to the current one; not on the CPU
            for first in range(0, hidden.shape[0], texts):
                part = slice(first, first + texts)
                self._run(
                    hidden[part],
                    layers,
                    tail_k[:, part],
                    tail_v[:, part],
                    k_pages,
                    v_pages,
                    page_table[part],
                    lengths[part],
                    mask,
                    *(None if x is None else x[part] for x in (cos, sin)),
                    *options,
                    counters=self._counters,
                    embedding=None if embedding is None else _part(embedding, part),
                )


def _part(embedding: Embedding, texts: slice) -> Embedding:
    ids, tokens, places, positions, offset = embedding
    return ids[texts], tokens, places, None if positions is None else positions[texts], offset
