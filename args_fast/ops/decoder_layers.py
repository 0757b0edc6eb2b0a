"""All decoder layers of a model over the rows of a tail, as one op.

Apart from the ops of a step, because it stands in for a model's own modules, which work everywhere:
``args_fast.models.fused`` sends the models to it that it knows. ``args_fast.ops.plain_layers`` says
what it computes. On the CPU it is one call of C++ (csrc/cpu/decoder_layers.h), on CUDA a sequence
of Triton kernels (kernels/triton/decoder_layers.py).
"""

import math
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from args_fast.ops import cpp, triton
from args_fast.ops.backends import forced_backend
from args_fast.ops.schemas import LAYER_WEIGHTS, TERM_NAMES

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


def unsupported(
    weights: list[Tensor], head_size: int, low_rank: Sequence[Tensor] = ()
) -> str | None:
    """Why the op cannot take a model's layers, or None.

    Args:
        weights: LAYER_WEIGHTS of each layer.
        head_size: elements of a head.
        low_rank: an adapter's terms, as the op takes them.
    """
    device = weights[0].device.type
    name = backend(device)
    if name is None:
        status = cpp.status() if device == "cpu" else triton.status()
        return f"the op is not here ({status}), or another backend is forced"
    if name == "cpp":
        return None
    reason: str | None = _kernels().unsupported(by_name(weights, low_rank), head_size)
    return reason


def by_name(
    weights: Sequence[Tensor], low_rank: Sequence[Tensor] = ()
) -> list[dict[str, Tensor | None]]:
    """Each layer's tensors by the names of LAYER_WEIGHTS, and with an adapter those of TERM_NAMES;
    None for those that it does not have."""
    count = len(weights) // len(LAYER_WEIGHTS)
    layers = [dict[str, Tensor | None]() for _ in range(count)]
    for names, tensors in ((LAYER_WEIGHTS, weights), (TERM_NAMES, low_rank)):
        for i, tensor in enumerate(tensors):
            layers[i // len(names)][names[i % len(names)]] = tensor if tensor.numel() else None
    return layers


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
    weights' type, and be made from embeddings, which costs no launch more.

    More than ROWS rows are taken some texts at a time, both models' rows of a text together."""

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
        layers = by_name(weights, low_rank)
        B, models = len(page_table), 2 if adapted else 1
        texts = max(1, ROWS // max(1, models * hidden.shape[1]))
        with torch.cuda.device_of(hidden):  # kernels go to the current one; not on the CPU
            for first in range(0, B, texts):
                part = slice(first, first + texts)
                halves = hidden.unflatten(0, (models, B))[:, part]
                rows = halves.flatten(0, 1).contiguous()  # a copy of some texts of both models
                self._run(
                    rows,
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
                    [*(x[:, part] for x in adapted[:2]), *adapted[2:]],
                    counters=self._counters,
                    embedding=None if embedding is None else _part(embedding, part),
                )
                if rows.data_ptr() != halves.data_ptr():
                    halves.copy_(rows.view_as(halves))


def _part(embedding: Embedding, texts: slice) -> Embedding:
    ids, tokens, places, positions, offset = embedding
    return ids[texts], tokens, places, None if positions is None else positions[texts], offset
