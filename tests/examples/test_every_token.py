"""Leads at every token: a case by hand; padding and the shared prompt do not count."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None,
    reason="trl is not installed: pip install 'args-fast[train]'",
)
sys.path.append(str(Path(__file__).parents[2] / "examples" / "training"))


def test_margins_compare_prefixes_of_equal_length():
    from every_token import margins

    ids = torch.tensor([[5, 6, 7, 8, 0], [5, 6, 9, 8, 1]])  # prompt 5 6; 0 is padding
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    r = torch.tensor([[0.0, 1.0, 3.0, 4.0, 99.0], [0.0, 1.0, 2.0, 6.0, 7.0]])
    lead, both, end = margins(r, ids, mask)
    assert both.tolist() == [[False, False, True, True, False]]
    assert lead[both].tolist() == [1.0, -2.0]
    assert end.tolist() == [4.0 - 7.0]


def test_token_rewards_are_those_of_the_texts_alone():
    from every_token import token_rewards
    from tiny_models import reward_model, tokens

    model = reward_model()
    text = tokens(7)
    ids = torch.tensor([[*text, 0, 0], tokens(9, seed=1)])
    mask = torch.tensor([[1] * 7 + [0, 0], [1] * 9])
    with torch.inference_mode():
        r = token_rewards(model, ids, mask)
        for length in (1, 4, 7):
            alone = model(input_ids=torch.tensor([text[:length]])).logits[0, 0]
            torch.testing.assert_close(r[0, length - 1], alone, atol=1e-5, rtol=1e-5)
