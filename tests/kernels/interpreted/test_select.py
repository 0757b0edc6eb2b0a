"""The Triton select against loops in float64, and against the plain implementation."""

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from args_fast.kernels.select import select, unsupported
from args_fast.ops import plain

# numpy's, of infinities and overflows that are part of what is tested
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(B, k, H, dtype=torch.float32, bias=True, seed=0):
    """Arguments of select, with the noise of sampling."""
    return {
        "hidden": random(B, k, H, seed=seed, dtype=dtype),
        "head_weight": random(H, seed=seed + 1, dtype=dtype) / H**0.5,
        "head_bias": random(1, seed=seed + 2, dtype=dtype) if bias else None,
        "logprobs": random(B, k, seed=seed + 3).sort(descending=True).values - 3,
        "w": random(B, seed=seed + 4).abs(),
        "temperature": random(B, seed=seed + 5).abs() + 0.3,
        "noise": random(B, k, seed=seed + 6),
    }


def naive(row, hidden, head_weight, head_bias, logprobs, w, temperature, noise):
    """One sequence in python floats -> (branch, reward, score, choices)."""
    weight = head_weight.tolist()
    bias = 0.0 if head_bias is None else head_bias.item()
    rewards = [
        math.fsum(a * b for a, b in zip(candidate, weight, strict=True)) + bias
        for candidate in hidden[row].tolist()
    ]
    logprobs, w = logprobs[row].tolist(), w[row].item()
    scores = [p + w * r for p, r in zip(logprobs, rewards, strict=True)]
    tau, noise = temperature[row].item(), noise[row].tolist()
    choices = [s / tau + n for s, n in zip(scores, noise, strict=True)]
    branch = choices.index(max(choices))
    return branch, rewards[branch], scores[branch], choices


def assert_right(arguments):
    """The choice must be the oracle's, unless the best two are closer than float32 can tell."""
    got = select(**arguments)
    B = arguments["hidden"].shape[0]
    assert [x.dtype for x in got] == [torch.int64, torch.float32, torch.float32]
    assert [x.shape for x in got] == [(B,)] * 3
    expected = plain.select(**arguments)
    for b in range(B):
        branch, reward, score, choices = naive(b, **arguments)
        best = sorted(choices)[-2:]
        if len(best) == 2 and best[1] - best[0] < 1e-4:
            continue
        assert (got[0][b].item(), expected[0][b].item()) == (branch, branch)
        assert got[1][b].item() == pytest.approx(reward, abs=2e-5, rel=1e-5)
        assert got[2][b].item() == pytest.approx(score, abs=2e-5, rel=1e-5)
        assert got[1][b].item() == pytest.approx(expected[1][b].item(), abs=2e-5, rel=1e-5)
        assert got[2][b].item() == pytest.approx(expected[2][b].item(), abs=2e-5, rel=1e-5)


SHAPES = [(1, 1, 1), (1, 1, 700), (2, 10, 33), (3, 7, 1), (1, 40, 513), (1, 128, 200)]
CASES = [(*shape, DTYPES[i % 3]) for i, shape in enumerate(SHAPES)]
CASES += [(2, 10, 1000, dtype) for dtype in DTYPES]


@pytest.mark.parametrize(("B", "k", "H", "dtype"), CASES)
def test_it_is_the_branch_with_the_highest_sum(B, k, H, dtype):
    assert_right(inputs(B, k, H, dtype))
    assert_right(inputs(B, k, H, dtype, bias=False, seed=50))


def with_rewards(rewards, **more):
    """Arguments whose rewards are exactly those given, [B, k], with the argmax unless said."""
    rewards = torch.tensor(rewards)
    B, k = rewards.shape
    arguments = {
        "hidden": torch.stack([rewards, torch.zeros(B, k)], dim=2),
        "head_weight": torch.tensor([1.0, 0.0]),
        "head_bias": None,
        "logprobs": torch.zeros(B, k),
        "w": torch.ones(B),
        "temperature": torch.ones(B),
        "noise": torch.zeros(B, k),
    }
    return {**arguments, **{name: torch.tensor(value) for name, value in more.items()}}


def assert_is(arguments, branch, reward, score):
    for implementation in (select, plain.select):
        got = implementation(**arguments)
        assert got[0].tolist() == branch
        assert got[1].tolist() == pytest.approx(reward, nan_ok=True)
        assert got[2].tolist() == pytest.approx(score, nan_ok=True)


def test_the_first_of_equal_scores_wins():
    arguments = with_rewards([[1.0, 2.0, 2.0, 0.0, 2.0], [0.0] * 5, [1.0, 2.0, 3.0, 3.0, 0.0]])
    assert_is(arguments, [1, 0, 2], [2.0, 0.0, 3.0], [2.0, 0.0, 3.0])


def test_each_row_has_its_own_weight_temperature_and_noise():
    arguments = with_rewards(
        [[0.0, 1.0]] * 4,
        logprobs=[[-1.0, -1.5]] * 4,
        w=[0.0, 1.0, 1.0, 1.0],
        temperature=[1.0, 1.0, 0.1, 10.0],
        noise=[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
    )
    assert_is(arguments, [0, 1, 1, 0], [0.0, 1.0, 1.0, 0.0], [-1.0, -0.5, -0.5, -1.0])


def test_a_negative_weight_prefers_low_rewards():
    arguments = with_rewards([[3.0, -1.0, 2.0]], w=[-2.0])
    assert_is(arguments, [1], [-1.0], [2.0])


def test_scores_far_below_zero_beat_what_pads_k():
    assert_is(with_rewards([[-1e30, -1e29, -1e31]]), [1], [-1e29], [-1e29])
    arguments = with_rewards([[1.0, 2.0, 3.0]], logprobs=[[-INF] * 3])
    assert_is(arguments, [0], [1.0], [-INF])
    arguments = with_rewards([[1.0, 9.0, 3.0]], logprobs=[[-2.0, -INF, -5.0]])
    assert_is(arguments, [0], [1.0], [-1.0])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_reward_that_is_not_finite_breaks_its_row_alone(bad):
    arguments = with_rewards([[0.0, 1.0, 0.5], [3.0, 1.0, bad], [0.0, 0.5, 2.0]])
    assert_is(arguments, [1, 0, 2], [1.0, NAN, 2.0], [1.0, NAN, 2.0])


def test_a_nan_logprob_breaks_its_row_but_not_its_reward():
    arguments = with_rewards([[1.0, 2.0, 3.0]] * 2, logprobs=[[NAN] * 3, [0.0] * 3])
    assert_is(arguments, [0, 2], [1.0, 3.0], [NAN, 3.0])
    assert_is(with_rewards([[1.0, 2.0, 3.0]], logprobs=[[0.0, 0.0, NAN]]), [0], [1.0], [NAN])
    arguments = with_rewards([[1.0, 2.0, NAN]], logprobs=[[0.0, 0.0, NAN]])
    assert_is(arguments, [0], [NAN], [NAN])


def test_a_head_that_overflows_breaks_its_row():
    arguments = with_rewards([[2.0, 3.0]])
    arguments["head_weight"] = torch.tensor([3e38, 0.0])
    assert_is(arguments, [0], [NAN], [NAN])


def test_an_infinite_choice_wins_and_a_nan_counts_as_one():
    arguments = with_rewards([[1.0, 2.0, 3.0]] * 2, noise=[[0.0, INF, 0.0], [0.0, INF, INF]])
    assert_is(arguments, [1, 1], [2.0, 2.0], [2.0, 2.0])
    arguments = with_rewards([[1.0, 2.0]], logprobs=[[0.0, -INF]], noise=[[0.0, INF]])
    assert_is(arguments, [1], [2.0], [-INF])


def test_tensors_need_not_be_contiguous():
    arguments = inputs(3, 5, 20)
    expected = select(**arguments)
    wide = torch.full((5, 3, 40), NAN)
    wide[:, :, :20] = arguments["hidden"].transpose(0, 1)
    arguments["hidden"] = wide[:, :, :20].transpose(0, 1)
    for name in ("logprobs", "noise"):
        wide = torch.full((3, 4, 9), NAN)
        wide[:, 2, :5] = arguments[name]
        arguments[name] = wide[:, 2, :5]
    for got, wanted in zip(select(**arguments), expected, strict=True):
        assert torch.equal(got, wanted)
    for name in ("hidden", "logprobs", "noise"):
        arguments[name] = arguments[name].transpose(0, -1).contiguous().transpose(0, -1)
    for got, wanted in zip(select(**arguments), expected, strict=True):
        assert torch.equal(got, wanted)


def test_weight_and_temperature_may_be_one_number_for_all():
    arguments = inputs(3, 5, 20)
    arguments["w"] = torch.tensor([0.5, 50.0, -50.0])[:1].expand(3)
    arguments["temperature"] = torch.tensor([0.05, 100.0, 100.0])[:1].expand(3)
    assert_right(arguments)


@pytest.mark.parametrize("k", [3, 40])
def test_a_sequence_has_the_same_bits_in_a_batch(k):
    arguments = inputs(3, k, 300, torch.bfloat16)
    together = select(**arguments)
    shared = ("head_weight", "head_bias")
    for b in range(3):
        alone = {n: x if n in shared else x[b : b + 1] for n, x in arguments.items()}
        assert [x.item() for x in select(**alone)] == [x[b].item() for x in together]


QUARTERS = st.sampled_from([-1.0, -0.25, -0.0, 0.0, 0.25, 0.5, 2.0])  # exact in every order


@settings(max_examples=50, phases=[Phase.generate])
@given(data=st.data(), k=st.integers(1, 20), greedy=st.booleans())
def test_any_row_of_exact_sums_and_many_ties(data, k, greedy):
    def row():
        return data.draw(st.lists(QUARTERS, min_size=k, max_size=k))

    arguments = with_rewards(
        [row()],
        logprobs=[sorted(row(), reverse=True)],
        noise=[[0.0] * k if greedy else row()],
        w=[data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))],
        temperature=[1.0 if greedy else data.draw(st.sampled_from([0.5, 1.0, 4.0]))],
    )
    branch, reward, score, _ = naive(0, **arguments)
    assert_is(arguments, [branch], [reward], [score])


def test_what_it_cannot_take_it_says():
    assert unsupported(*inputs(1, 128, 4).values()) is None
    assert "k up to 128, not 129" in unsupported(*inputs(1, 129, 4).values())
    assert "float64" in unsupported(*inputs(1, 2, 4, torch.float64).values())
