"""By which way the passes of a tail go: the fused layers or the model's modules."""

from contextlib import contextmanager
from unittest import mock

from args_fast.models import backbone
from args_fast.models.branches import Branches
from args_fast.models.fused import FusedLayers


@contextmanager
def fused_up_to(rows):
    """Let fused_layers="auto" be passes of up to so many rows, whatever the device and the op."""
    with mock.patch.object(backbone, "faster_rows", return_value=rows):
        yield


@contextmanager
def rows_by_way():
    """The rows of every pass of a tail in this context: those of the fused layers, those of both
    models in one pass among them, and those of modules, of which each layer is counted."""
    rows = {"fused": [], "joined": [], "modules": []}
    hidden, hidden_with, attend = FusedLayers.hidden, FusedLayers.hidden_with, Branches.attend

    def fused(self, ids, *arguments):
        rows["fused"].append(ids.numel())
        return hidden(self, ids, *arguments)

    def joined(self, ids, *arguments):
        rows["joined"].append(2 * ids.numel())
        return hidden_with(self, ids, *arguments)

    def through_modules(self, layer, query, *arguments):
        rows["modules"].append(query.shape[0] * query.shape[2])
        return attend(self, layer, query, *arguments)

    with (
        mock.patch.object(FusedLayers, "hidden", fused),
        mock.patch.object(FusedLayers, "hidden_with", joined),
        mock.patch.object(Branches, "attend", through_modules),
    ):
        yield rows
