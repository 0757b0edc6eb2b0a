"""The program that cuts the layers' products, on a model of 64 columns."""

import torch

import scripts

tuning = scripts.load("scripts/layer_tuning.py")
SHAPE, CPU = "tiny-opt", torch.device("cpu")


def test_every_product_runs_in_cuts_of_its_own_and_tuning_stays(capsys):
    before = repr(tuning.layer_pass.TUNING)
    tried = [cut for cut in tuning.cuts(SHAPE, few=True) if cut.splits in (None, 3)]
    assert {cut.kind for cut in tried if cut.splits} == set(tuning.SPLITS)
    figures = []
    best = tuning.products(SHAPE, tried, CPU, figures)
    assert len(figures) == len(tried)
    assert not [figure for figure in figures if "error" in figure]
    assert set(best) == {"project", "feed", "add"}
    tuning.passes(SHAPE, CPU, 1, [tuning.Variant("best cuts", best, 256)])
    assert "best cuts" in capsys.readouterr().out
    assert repr(tuning.layer_pass.TUNING) == before
