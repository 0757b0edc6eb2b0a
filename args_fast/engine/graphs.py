"""CUDA graphs of a step, one per shape, captured when a shape comes for the second time."""

import warnings
from collections.abc import Callable, Hashable

import torch


class StepGraphs:
    """Replays a function on the device without the host's work in between.

    The function reads and writes tensors that stay where they are, and nothing else. The first call
    of a shape runs as it is, which is the warm-up that a capture needs; the second captures it (a
    capture runs nothing) and replays; all others replay. Where a model cannot be captured (an
    expert choice that the host looks at, say) that is said once, and its calls go on as they are.

    Args:
        enabled: False runs every call as it is, as on the CPU.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        # The functions are kept, because what they hold must live as long as the graph.
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Callable[[], None]] | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call the function; ``key`` names all that it depends on but the values in its tensors."""
        if not self.enabled or key not in self._graphs:
            function()
            if self.enabled:
                self._graphs[key] = None
            return
        if self._graphs[key] is None:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    function()
            except RuntimeError as error:
                self.enabled = False
                warnings.warn(
                    f"a decode step cannot be captured as a CUDA graph ({error}); it runs without, "
                    "slower. cuda_graphs=False says so from the start.",
                    stacklevel=2,
                )
                function()
                return
            self._graphs[key] = (graph, function)
        entry = self._graphs[key]
        assert entry is not None
        entry[0].replay()

    def clear(self) -> None:
        """Forget all graphs: the tensors that they use are about to move."""
        self._graphs.clear()
