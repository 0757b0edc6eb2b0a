"""The parts of a step are of the right kind, of the right model, and add up to the step."""

from types import SimpleNamespace

import pytest
import torch

from args_fast.bench import models, parts
from args_fast.bench.baselines.engine import beside


@pytest.fixture(scope="module")
def pair():
    return models.random_pair("tiny-opt", "tiny-opt")


def prompts(batch, length=9):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, 500, (batch, length), generator=generator).tolist()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["tiny-opt", "tiny-llama"])
def test_the_parts_add_up_to_the_step(name, batch):
    pair = models.random_pair(name, name)
    found = parts.measure_parts(pair, prompts(batch), 32, 5, 1.5, 0.25)
    assert sum(found["parts"].values()) == pytest.approx(0.25)
    assert min(found["parts"].values()) >= 0
    assert set(found["parts"]) == set(parts.NAMES) - {parts.PRODUCT}  # all of them told apart
    for name in (parts.ATTENTION, parts.TOPK, parts.COMMIT, "LM matrix products"):
        assert found["parts"][name] > 0
    assert found["profile"]["steps"] == parts.STEPS["cpu"]
    assert found["profile"]["busy_seconds"] > 0


def test_the_larger_model_has_the_larger_part():
    pair = models.random_pair("tiny-opt", "tiny-opt")
    layers = pair.reward_model.base_model.decoder.layers
    for layer in layers:
        layer.fc1, layer.fc2 = torch.nn.Linear(64, 30000), torch.nn.Linear(30000, 64)
    found = parts.measure_parts(beside(pair, prompts(1), 32), prompts(1), 32, 5, 1.5, 1.0)["parts"]
    assert found["RM matrix products"] > 2 * found["LM matrix products"]


def test_the_models_and_the_decoder_are_as_before(pair):
    before = pair.generate(prompts(1))[0].token_ids
    parts.measure_parts(pair, prompts(1), 32, 5, 1.5, 1.0)
    assert not pair.language_model._forward_hooks
    assert not pair.reward_model.base_model._forward_pre_hooks
    assert pair.cache.pages_in_use == 0
    assert pair.generate(prompts(1))[0].token_ids == before


def test_too_few_tokens_are_an_error_that_says_so(pair):
    for new_tokens in (1, 5):
        with pytest.raises(RuntimeError, match=f"{new_tokens} new tokens are too few"):
            parts.measure_parts(pair, prompts(1), new_tokens, 5, 1.5, 1.0)


def test_an_error_of_the_decode_leaves_no_profiler_running(pair, monkeypatch):
    ranges = []
    enter = parts.record_function.__enter__

    def entered(self):
        ranges.append(self)
        if len(ranges) > 8:  # in the middle of what is profiled
            raise ValueError("broken")
        return enter(self)

    with monkeypatch.context() as patch:
        patch.setattr(parts.record_function, "__enter__", entered)
        with pytest.raises(ValueError, match="broken"):
            parts.measure_parts(pair, prompts(1), 32, 5, 1.5, 1.0)
    assert parts.measure_parts(pair, prompts(1), 32, 5, 1.5, 1.0)["parts"]


def event(name, *, above=None, seconds=0.0, kernels=()):
    return SimpleNamespace(
        name=name,
        cpu_parent=above,
        self_cpu_time_total=seconds * 1e6,
        kernels=[SimpleNamespace(duration=each * 1e6) for each in kernels],
    )


def test_an_op_belongs_to_what_called_it():
    lm, rm = event("LM", seconds=9.0, kernels=[9.0]), event("RM")
    linear = event("aten::linear", above=lm, seconds=0.5)
    attention = event("args_fast::branch_attention", above=rm, seconds=3.0)
    routed = event("args_fast::linear", above=rm, seconds=5.0, kernels=[0.25, 0.5])
    events = [
        lm,
        rm,
        linear,
        attention,
        routed,
        event("aten::addmm", above=linear, seconds=2.0, kernels=[1.5]),
        event("aten::copy_", above=attention, seconds=1.0, kernels=[0.125]),
        event("cudaLaunchKernel", above=linear, seconds=7.0),
        event("args_fast::topk_logprobs", seconds=0.75, kernels=[0.0625]),
        event("aten::layer_norm", above=lm, seconds=0.1, kernels=[0.01]),
    ]
    assert parts.spent(events) == {
        ("LM", parts.PRODUCT): 2.5,
        ("RM", "branch_attention"): 4.0,
        ("RM", parts.PRODUCT): 5.0,
        ("", "topk_logprobs"): 0.75,
        ("LM", "layer norms"): pytest.approx(0.1),
    }
    assert parts.spent(events, device="cuda") == {
        ("LM", parts.PRODUCT): 1.5,
        ("RM", "branch_attention"): 0.125,
        ("RM", parts.PRODUCT): 0.75,
        ("", "topk_logprobs"): 0.0625,
        ("LM", "layer norms"): pytest.approx(0.01),
    }


def test_what_no_op_accounts_for_is_the_hosts():
    times = {("LM", parts.PRODUCT): 0.2, ("RM", "branch_attention"): 0.1, ("", parts.OTHER): 0.1}
    found = parts.of_a_step(times, 1.0, 0.5)
    assert found[parts.IDLE] == pytest.approx(0.1)
    assert found[parts.REST] == pytest.approx(0.1)
    scaled = parts.of_a_step(times, 0.5, 0.2)  # side by side: twice the step
    assert scaled[parts.IDLE] == pytest.approx(0.0)
    assert scaled["LM matrix products"] == pytest.approx(0.1)


def test_a_product_of_neither_model_has_a_part_of_its_own():
    assert parts.of_a_step({("", parts.PRODUCT): 0.1}, 1.0, 0.1)[parts.PRODUCT] == 0.1
