"""CUDA graphs of a step, one per shape, captured when a shape comes for the second time."""

import gc
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from args_fast.quantization import plain

Function = Callable[[], None]


class StepGraphs:
    """Replays a function on the device without the host's work in between.

    The function reads and writes tensors that stay where they are, and nothing else. The first call
    of a shape runs as it is, which is the warm-up that a capture needs; the second captures it (a
    capture runs nothing) and replays; all others replay. Where a model cannot be captured (an
    expert choice that the host looks at, say) that is said once, and all calls run as they are.

    Args:
        enabled: False runs every call as it is, as on the CPU.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.failure: str | None = None  # why a capture failed: steps then run as they are
        # Each with the function, because what that holds must live as long as the graph.
        self._replays: dict[Hashable, tuple[Function, Function] | None] = {}
        self._pool: Any = None  # memory that all the graphs work in, in turn
        self._stream: Any = None  # of the device that is captured, which need not be the first
        self._weights: tuple[int, ...] = ()

    def run(self, key: Hashable, function: Function) -> None:
        """Call the function; ``key`` names all that it depends on but the values in its tensors."""
        if not self.enabled or key not in self._replays:
            function()
            if self.enabled:
                self._replays[key] = None
            return
        entry = self._replays[key]
        if entry is None:
            entry = self._replays[key] = (self._capture(function), function)
        entry[0]()

    def bind(self, weights: Iterable[Tensor]) -> None:
        """Forget all graphs where weights lie elsewhere than at the last call: between decodes the
        models are the caller's, and a graph would keep reading where they were."""
        addresses = tuple(piece.data_ptr() for weight in weights for piece in plain(weight))
        if addresses != self._weights:
            self.clear()
            self._weights = addresses

    def clear(self) -> None:
        """Forget all graphs: the tensors that they use are about to move."""
        self._replays.clear()
        self._pool = None  # it ends with the last graph that was captured into it

    def _capture(self, function: Function) -> Function:
        graph = torch.cuda.CUDAGraph()
        self._stream = self._stream or torch.cuda.Stream()
        before = torch.cuda.current_stream()
        _forget_workspaces()
        # Collected tensors of the garbage collector would be freed into the capture.
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()
        try:
            # Other threads may allocate meanwhile: what they do is not ours to forbid.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                function()
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # a capture that fails does not find back by itself
            self.enabled = False
            self.failure = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"a decode step cannot be captured as a CUDA graph ({error}); it runs without, "
                "slower. cuda_graphs=False says so from the start.",
                stacklevel=2,
            )
            return function
        finally:
            if collecting:
                gc.enable()
            _forget_workspaces()
        self._pool = graph.pool()
        return graph.replay


def _forget_workspaces() -> None:
    """cuBLAS keeps memory for each stream that it was called on. A graph has to find its own in its
    own pool, not what others may free (torch's compiler does, for graphs of its own), and nothing
    else may work in that of a graph."""
    torch._C._cuda_clearCublasWorkspaces()
