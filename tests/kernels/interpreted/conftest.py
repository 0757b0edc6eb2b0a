"""Triton's interpreter as the tests want it."""

import interpreter  # noqa: F401 (it is put right by being imported)
import numpy as np
import pytest


@pytest.fixture
def row_by_row(monkeypatch):
    """Products in which a row has one order of sums, as in tensor cores; numpy's order depends on
    where in the matrix the row is."""

    def matmul(a, b, dtype=None):
        a, b = (np.ascontiguousarray(x, dtype=dtype) for x in (a, b))
        return np.stack([np.dot(row, b) for row in a])

    monkeypatch.setattr(np, "matmul", matmul)
