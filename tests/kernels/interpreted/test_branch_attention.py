"""The Triton branch_attention against one softmax per row and head, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from args_fast.kernels import branch_attention as module
from args_fast.kernels.branch_attention import branch_attention, unsupported
from args_fast.ops import plain

# numpy's, of the infinities and NaN that are part of what is tested
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
NAN = float("nan")


def tree(N, seed):
    """Every row sees itself and all that a random earlier row sees, or nothing more."""
    generator = np.random.default_rng(seed)
    mask = torch.eye(N, dtype=torch.bool)
    for i in range(1, N):
        parent = generator.integers(-1, i)
        if parent >= 0:
            mask[i] |= mask[parent]
    return mask


MASKS = {
    "siblings": lambda N, seed: torch.eye(N, dtype=torch.bool),
    "chain": lambda N, seed: torch.ones(N, N, dtype=torch.bool).tril(),
    "tree": tree,
}


def inputs(
    N=3,
    Hkv=2,
    G=2,
    D=32,
    lengths=(5, 17),
    page_size=16,
    dtype=torch.float32,
    shape="siblings",
    window=0,
    softcap=0.0,
    sinks=False,
    spare=0,
    seed=0,
):
    """Arguments of branch_attention. Pages are out of order, those of the table's unused end are
    page 0, and every row that is not stored is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    B = len(lengths)
    P = max(1, max(-(-t // page_size) for t in lengths)) + spare
    numbers = (torch.randperm(B * P, generator=generator) + 1).view(B, P)
    k_pages = torch.full((B * P + 1, page_size, Hkv, D), NAN, dtype=dtype)
    v_pages = k_pages.clone()
    for b, t in enumerate(lengths):
        used = -(-t // page_size)
        numbers[b, used:] = 0
        for pages in (k_pages, v_pages):
            rows = torch.full((used * page_size, Hkv, D), NAN, dtype=dtype)
            rows[:t] = random(t, Hkv, D)
            pages[numbers[b, :used]] = rows.view(used, page_size, Hkv, D)
    return {
        "q": random(B, N, Hkv * G, D),
        "tail_k": random(B, N, Hkv, D),
        "tail_v": random(B, N, Hkv, D),
        "k_pages": k_pages,
        "v_pages": v_pages,
        "page_table": numbers.int(),
        "prefix_lengths": torch.tensor(lengths, dtype=torch.int32),
        "tail_mask": MASKS[shape](N, seed),
        "scale": 1.3 * D**-0.5,
        "sliding_window": window,
        "softcap": softcap,
        "sinks": random(Hkv * G) if sinks else None,
    }


def naive(
    q,
    tail_k,
    tail_v,
    k_pages,
    v_pages,
    page_table,
    prefix_lengths,
    tail_mask,
    scale,
    sliding_window,
    softcap,
    sinks,
):
    B, N, Hq, D = q.shape
    G = Hq // k_pages.shape[2]
    q, tail_k, tail_v, k_pages, v_pages = (
        x.double().numpy() for x in (q, tail_k, tail_v, k_pages, v_pages)
    )
    mask = tail_mask.numpy()
    out = np.zeros((B, N, Hq, D))
    for b in range(B):
        t = int(prefix_lengths[b])
        pages = page_table[b].tolist()
        stored = [
            np.concatenate([x[pages].reshape(-1, *x.shape[2:])[:t], tail[b]])
            for x, tail in ((k_pages, tail_k), (v_pages, tail_v))
        ]
        position = np.concatenate([np.arange(t), t + mask.sum(1) - 1])
        for n in range(N):
            sees = np.concatenate([np.ones(t, dtype=bool), mask[n]])
            if sliding_window:
                sees &= position > position[t + n] - sliding_window
            for h in range(Hq):
                keys, values = (x[sees, h // G] for x in stored)
                s = keys @ q[b, n, h] * scale
                if softcap:
                    s = softcap * np.tanh(s / softcap)
                e = np.exp(s - s.max())
                rest = 0.0 if sinks is None else np.exp(float(sinks[h]) - s.max())
                out[b, n, h] = e @ values / (e.sum() + rest)
    return torch.from_numpy(out)


def assert_right(arguments):
    assert unsupported(*arguments.values()) is None
    got, q = branch_attention(**arguments), arguments["q"]
    assert (got.shape, got.dtype) == (q.shape, q.dtype)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(got.double(), naive(**arguments), atol=tolerance, rtol=tolerance)


@settings(max_examples=25, phases=[Phase.generate])
@given(
    N=st.sampled_from([1, 2, 3, 10, 17]),
    heads=st.sampled_from([(1, 1), (3, 1), (2, 2), (1, 4), (2, 7)]),  # MHA, GQA and MQA
    D=st.sampled_from([5, 16, 32, 64, 80, 96, 128]),
    lengths=st.lists(st.sampled_from([0, 1, 15, 16, 33, 70, 200]), min_size=1, max_size=3),
    page_size=st.sampled_from([1, 7, 16]),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    shape=st.sampled_from(sorted(MASKS)),
    window=st.sampled_from([0, 0, 1, 3, 20, 1000]),
    softcap=st.sampled_from([0.0, 0.0, 0.7, 30.0]),
    sinks=st.booleans(),
    spare=st.sampled_from([0, 0, 5]),
    seed=st.integers(0, 99),
)
def test_any_tail(heads, **more):
    Hkv, G = heads
    assert_right(inputs(Hkv=Hkv, G=G, **more))


@pytest.mark.parametrize(
    ("D", "dtype"),
    [
        *((80, torch.bfloat16), (96, torch.float16), (128, torch.float32)),
        *((256, torch.float32), (256, torch.bfloat16)),
    ],
)
def test_heads_of_every_size(D, dtype):
    assert_right(inputs(D=D, dtype=dtype, lengths=(70,)))


@pytest.mark.parametrize(
    ("N", "G", "shape"), [(10, 7, "siblings"), (40, 4, "tree"), (70, 1, "chain"), (17, 16, "tree")]
)
@pytest.mark.parametrize(("window", "dtype"), [(0, torch.float16), (12, torch.float32)])
def test_more_rows_than_a_tile(N, G, shape, window, dtype):
    assert_right(inputs(N, 1, G, 16, (40, 3), dtype=dtype, shape=shape, window=window))


WINDOW, SINKS = {"window": 33}, {"sinks": True, "softcap": 2.0}


@pytest.mark.parametrize(
    ("splits", "more"),
    [(1, {}), (2, WINDOW), (3, {}), (3, SINKS), (7, WINDOW), (7, SINKS), (128, {}), (128, SINKS)],
    ids=str,
)
def test_however_the_prefix_is_divided(splits, more, monkeypatch):
    monkeypatch.setattr(module, "machine", lambda device: ((8, 0), 1000))
    monkeypatch.setattr(module, "SPLITS", splits)
    arguments = inputs(4, 1, 2, 64, (0, 1, 129, 200), shape="tree", spare=40, **more)
    merged = []
    merge = module._merge

    class Recorder:
        def __getitem__(self, grid):
            return lambda *a, **k: (merged.append(a[4]), merge[grid](*a, **k))

    monkeypatch.setattr(module, "_merge", Recorder())
    assert_right(arguments)
    keys = more.get("window") or arguments["page_table"].shape[1] * 16
    block = module.TUNING[8, 0]["blocks"][4, 64][16][0]
    wanted = min(splits, -(-keys // block))
    assert merged == ([wanted] if wanted > 1 else [])


def test_what_is_not_stored_has_no_influence():
    arguments = inputs(lengths=(0, 3, 16, 17), spare=2, window=9, sinks=True)
    got = branch_attention(**arguments)
    assert got.isfinite().all()
    for name in ("k_pages", "v_pages"):
        arguments[name] = arguments[name].nan_to_num(1e4)
    assert torch.equal(branch_attention(**arguments), got)


@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("name", ["k_pages", "v_pages", "tail_k", "q"])
def test_a_nan_that_is_seen_is_told(name, splits, monkeypatch):
    monkeypatch.setattr(module, "SPLITS", splits)
    arguments = inputs(lengths=(40,), N=2)
    if name.endswith("pages"):  # all the keys that one program has
        for row in range(16):
            arguments[name][arguments["page_table"][0, 0], row] = NAN
    else:
        arguments[name][0, 0] = NAN
    expected = plain.branch_attention(**arguments).isnan().all(3)
    assert expected[0, 0].all()
    assert torch.equal(branch_attention(**arguments).isnan().all(3), expected)


def test_large_scores_do_not_overflow():
    arguments = inputs(N=2, lengths=(40,))
    arguments["q"] *= 1000
    got = branch_attention(**arguments)
    torch.testing.assert_close(got.double(), naive(**arguments), atol=1e-3, rtol=1e-3)


def test_tensors_need_not_be_contiguous():
    arguments = inputs(N=5, lengths=(20, 3))
    expected = branch_attention(**arguments)
    for name in ("q", "tail_k", "tail_v"):  # as a model hands them over: heads before rows
        arguments[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
    arguments["tail_mask"] = arguments["tail_mask"].T
    for name in ("k_pages", "v_pages"):
        wide = torch.full((*arguments[name].shape[:2], 4, 40), NAN)
        wide[:, :, 1:3, 4:36] = arguments[name]
        arguments[name] = wide[:, :, 1:3, 4:36]
    wide = torch.full((2, 9), 10_000, dtype=torch.int32)
    wide[:, :2] = arguments["page_table"]
    arguments["page_table"] = wide[:, :2]
    assert torch.equal(branch_attention(**arguments), expected)


def test_a_sequence_has_the_same_values_in_a_batch():
    arguments = inputs(N=4, lengths=(90, 0, 33), shape="tree")
    together = branch_attention(**arguments)
    shared = ("k_pages", "v_pages", "tail_mask", "scale", "sliding_window", "softcap", "sinks")
    for b in range(3):
        alone = {n: x if n in shared else x[b : b + 1] for n, x in arguments.items()}
        torch.testing.assert_close(branch_attention(**alone)[0], together[b], atol=1e-6, rtol=1e-6)


def test_what_it_cannot_take_it_says():
    wide = inputs(N=1, Hkv=1, G=1, D=288, lengths=(1,))
    assert "up to 256 elements, not 288" in unsupported(*wide.values())
    double = inputs(N=1, lengths=(1,), dtype=torch.float64)
    assert "float64" in unsupported(*double.values())
    turned = inputs(N=1, lengths=(1,))
    turned["k_pages"] = turned["k_pages"].transpose(2, 3).contiguous().transpose(2, 3)
    assert "side by side" in unsupported(*turned.values())
