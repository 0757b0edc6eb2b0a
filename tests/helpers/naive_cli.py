"""The command line with naive decoders of the embedded pair, whatever models are named."""

import pytest
from naive_decoder import naive_tiny_decoder

from args_fast.cli import evaluation, explain, pair


@pytest.fixture
def loaded(monkeypatch):
    """Has the commands decode naively; holds the names of the models that they loaded."""
    names = []

    def load_pair(lm, rm, **options):
        names.append((lm, rm))
        return naive_tiny_decoder(), pair.find_pair(lm, rm)

    for module in (pair, evaluation, explain):
        monkeypatch.setattr(module, "load_pair", load_pair)
    return names
