"""The floor counts the products of a step: all of them, with the rows that a step has."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from args_fast.bench import matmul_floor, models, roofline


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-llama", "tiny-qwen3"])
@pytest.mark.parametrize("rows", [1, 10])
def test_the_products_are_those_of_the_models_linear_layers(name, rows):
    for head, build in ((True, models.language_model), (False, models.reward_model)):
        model = build(name)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():  # which counts additions of a bias to a product as nothing
            matmul_floor.products(model, rows)()
        assert counter.get_total_flops() == 2 * rows * roofline.model_cost(name, head).matrices


def test_the_comparison_is_of_one_process_and_adds_up(capsys):
    matmul_floor.main(
        ["--lm", "tiny-opt", "--rm", "tiny-opt", "--k", "5", "--prompt", "9", "--rounds", "3"]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["floor"] == pytest.approx(1 + found["rm_products"] / found["lm_products"])
    assert found["slowdown"] == pytest.approx(found["args"] / found["greedy"])
    assert found["ratio"] == pytest.approx(found["slowdown"] / found["floor"])
    assert found["environment"]["device"]
    assert "k=5" in found["case"]
