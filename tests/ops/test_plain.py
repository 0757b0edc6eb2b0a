"""The plain implementations against what the contract says, written again as loops in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from args_fast import ops
from args_fast.ops import backends, plain
from args_fast.ops.schemas import SCHEMAS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
INF, NAN = math.inf, math.nan


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- topk_logprobs -------------------------------------------------------------------------------


def naive_topk(logits, k):
    """One row, as python floats -> (logprobs, ids)."""
    if any(math.isnan(x) or x == INF for x in logits) or all(x == -INF for x in logits):
        return [NAN] * k, list(range(k))
    highest = max(logits)
    normaliser = highest + math.log(math.fsum(math.exp(x - highest) for x in logits))
    ids = sorted(range(len(logits)), key=lambda v: (-logits[v], v))[:k]
    return [logits[v] - normaliser for v in ids], ids


def assert_topk(logits, k):
    logprobs, ids = plain.topk_logprobs(logits, k)
    assert (logprobs.dtype, ids.dtype) == (torch.float32, torch.int64)
    for row, got, chosen in zip(logits.tolist(), logprobs.tolist(), ids.tolist(), strict=True):
        wanted, wanted_ids = naive_topk(row, k)
        assert chosen == wanted_ids
        assert got == pytest.approx(wanted, abs=1e-5, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("B", "V", "k"), [(1, 1, 1), (1, 7, 7), (3, 50, 10), (2, 257, 128), (5, 1009, 1), (2, 4099, 37)]
)
def test_topk_is_the_sorted_log_softmax(B, V, k, dtype):
    assert_topk(random(B, V, seed=V, dtype=dtype) * 5, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_logits_come_in_the_order_of_their_ids(dtype):
    # 16-bit logits of a large vocabulary have ties everywhere, also across the k-th place.
    logits = random(4, 997, dtype=dtype).mul(2).round()
    assert logits[0].unique().numel() < 20
    for k in (1, 5, 40, 128):
        assert_topk(logits, k)


def test_minus_zero_ties_with_zero():
    _, ids = plain.topk_logprobs(torch.tensor([[-1.0, -0.0, 0.0, -0.0, -1.0]]), 4)
    assert ids.tolist() == [[1, 2, 3, 0]]


def test_minus_infinity_is_an_ordinary_logit():
    logits = torch.tensor([[-INF, 1.0, -INF, 3.0, -INF], [-INF, -INF, -INF, -INF, 2.0]])
    assert_topk(logits, 5)
    logprobs, _ = plain.topk_logprobs(logits, 3)
    assert logprobs[1].tolist() == [0.0, -INF, -INF]


@pytest.mark.parametrize("bad", [[NAN, 1.0, 2.0], [1.0, INF, 2.0], [-INF] * 3, [INF, NAN, -INF]])
def test_a_row_without_a_distribution_is_nan_and_its_neighbours_are_not(bad):
    logits = torch.tensor([[1.0, 3.0, 2.0], bad, [2.0, 2.0, 5.0]])
    logprobs, ids = plain.topk_logprobs(logits, 2)
    assert logprobs.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert ids.tolist() == [[1, 2], [0, 1], [2, 0]]


def test_large_logits_do_not_overflow():
    assert_topk(torch.tensor([[128.0, 130.0, -128.0], [-200.0, -201.0, -200.0]]), 3)
    logprobs, ids = plain.topk_logprobs(torch.tensor([[-1.0, 2.0**126, 0.0]]), 2)
    assert (logprobs.tolist(), ids.tolist()) == ([[0.0, -(2.0**126)]], [[1, 2]])


def test_logits_need_not_be_contiguous():
    wide = random(3, 4, 100)
    assert_topk(wide[:, -1], 9)
    assert_topk(random(100, 3).T, 9)


@given(
    st.lists(
        st.sampled_from([-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1e-30, -1e-30, 88.0]),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 12),
)
def test_topk_of_any_row(row, k):
    assert_topk(torch.tensor([row]), min(k, len(row)))


# ---- branch_attention ----------------------------------------------------------------------------


def naive_attention(
    q,
    tail_k,
    tail_v,
    k_pages,
    v_pages,
    table,
    lengths,
    mask,
    scale,
    window=0,
    softcap=0.0,
    sinks=None,
):
    """Row by row, head by head, key by key."""
    q, tail_k, tail_v, k_pages, v_pages = (
        x.double().numpy() for x in (q, tail_k, tail_v, k_pages, v_pages)
    )
    B, N, Hq, D = q.shape
    page_size, Hkv = k_pages.shape[1:3]
    out = np.zeros((B, N, Hq, D))
    depth = [int(mask[i].sum()) - 1 for i in range(N)]
    for b in range(B):
        t = int(lengths[b])
        for i in range(N):
            for h in range(Hq):
                g = h // (Hq // Hkv)
                keys, values = [], []
                for j in range(t):
                    if not window or t + depth[i] - j < window:
                        page = int(table[b, j // page_size])
                        keys.append(k_pages[page, j % page_size, g])
                        values.append(v_pages[page, j % page_size, g])
                for j in range(N):
                    if mask[i, j] and (not window or depth[i] - depth[j] < window):
                        keys.append(tail_k[b, j, g])
                        values.append(tail_v[b, j, g])
                logits = np.array([q[b, i, h] @ key for key in keys]) * scale
                if softcap:
                    logits = softcap * np.tanh(logits / softcap)
                sink = [] if sinks is None else [float(sinks[h])]
                highest = max([*logits, *sink])
                weights = np.exp(logits - highest)
                total = weights.sum() + sum(math.exp(s - highest) for s in sink)
                out[b, i, h] = weights @ np.array(values) / total
    return out


IDENTITY, CHAIN, TREE = "identity", "chain", "tree"


def tail_mask(kind, N):
    if kind == IDENTITY:
        return torch.eye(N, dtype=torch.bool)
    if kind == CHAIN:
        return torch.ones(N, N, dtype=torch.bool).tril()
    mask = torch.eye(N, dtype=torch.bool)
    for i in range(1, N):  # node i hangs on node (i - 1) // 2, after all ancestors of that one
        mask[i] |= mask[(i - 1) // 2]
    return mask


def attention_case(
    lengths, N, Hq, Hkv, D, *, page_size=16, mask=IDENTITY, dtype=torch.float32, seed=0, loud=1.0
):
    """Inputs whose pages hold NaN wherever the contract says that nobody may look, with the pages
    of each sequence in no particular order."""
    B = len(lengths)
    P = max(1, -(-max(lengths) // page_size))
    pages = 1 + B * P
    order = 1 + torch.randperm(B * P, generator=torch.Generator().manual_seed(seed))
    table = torch.zeros(B, P, dtype=torch.int32)
    k_pages = torch.full((pages, page_size, Hkv, D), NAN)
    v_pages = torch.full((pages, page_size, Hkv, D), NAN)
    for b, length in enumerate(lengths):
        for at in range(-(-length // page_size)):
            page = int(order[b * P + at])
            table[b, at] = page
            rows = min(page_size, length - at * page_size)
            k_pages[page, :rows] = random(rows, Hkv, D, seed=seed + 2 * page) * loud
            v_pages[page, :rows] = random(rows, Hkv, D, seed=seed + 2 * page + 1)
    return [
        random(B, N, Hq, D, seed=seed + 1001).to(dtype),
        (random(B, N, Hkv, D, seed=seed + 1002) * loud).to(dtype),
        random(B, N, Hkv, D, seed=seed + 1003).to(dtype),
        k_pages.to(dtype),
        v_pages.to(dtype),
        table,
        torch.tensor(lengths, dtype=torch.int32),
        tail_mask(mask, N),
        D**-0.5,
    ]


def assert_attention(case, *options, tolerance=1e-5):
    out = plain.branch_attention(*case, *options)
    assert out.shape == case[0].shape
    assert out.dtype == case[0].dtype
    wanted = torch.from_numpy(naive_attention(*case, *options))
    torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)


LENGTHS = [[0], [1], [15, 16, 17], [0, 33, 5], [48]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("Hq", "Hkv", "D"), [(1, 1, 8), (4, 2, 16), (6, 1, 5), (3, 3, 7)])
def test_attention_sees_the_prefix_and_itself(lengths, Hq, Hkv, D):
    assert_attention(attention_case(lengths, 5, Hq, Hkv, D))


@pytest.mark.parametrize("mask", [IDENTITY, CHAIN, TREE])
@pytest.mark.parametrize("N", [1, 2, 7, 17])
def test_a_tail_row_sees_its_ancestors_only(mask, N):
    assert_attention(attention_case([19, 3], N, 4, 2, 8, mask=mask))


@pytest.mark.parametrize("mask", [IDENTITY, CHAIN, TREE])
@pytest.mark.parametrize("window", [1, 2, 5, 16, 17, 1000])
def test_the_sliding_window_counts_from_each_row(mask, window):
    assert_attention(attention_case([18, 0, 40], 7, 4, 2, 8, mask=mask), window)


@pytest.mark.parametrize("softcap", [0.3, 5.0])
@pytest.mark.parametrize("sinks", [None, -2.0, 3.0])
@pytest.mark.parametrize("window", [0, 4])
def test_softcap_and_sinks(softcap, sinks, window):
    case = attention_case([21, 0], 5, 4, 2, 8, mask=TREE)
    column = None if sinks is None else sinks + torch.arange(4.0)
    assert_attention(case, window, softcap, column)
    assert_attention(case, window, 0.0, column)


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_any_page_size(page_size):
    assert_attention(attention_case([7, 12, 1], 3, 4, 2, 8, page_size=page_size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_accumulates_in_float32(dtype):
    # A long prefix, where sums kept in 16 bits would be off by far more than one rounding.
    case = attention_case([500], 3, 2, 1, 16, dtype=dtype)
    assert_attention(case, tolerance=TOLERANCE[dtype])


def test_large_scores_do_not_overflow():
    assert_attention(attention_case([30], 4, 2, 1, 8, loud=500.0), tolerance=1e-4)


def test_rows_past_the_prefix_have_no_influence():
    case = attention_case([17, 2], 3, 4, 2, 8)
    clean = list(case)
    clean[3], clean[4] = (torch.nan_to_num(pages, nan=9.0) for pages in case[3:5])
    assert plain.branch_attention(*case).isfinite().all()
    assert torch.equal(plain.branch_attention(*case), plain.branch_attention(*clean))


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize(("Hq", "Hkv"), [(4, 4), (4, 2), (4, 1)])
def test_attention_returns_contiguous_rows(N, Hq, Hkv):
    """A compiled model takes its strides from what is said of the op, not from what it returns."""
    assert plain.branch_attention(*attention_case([9], N, Hq, Hkv, 8)).is_contiguous()


def test_attention_takes_strided_rows():
    case = attention_case([17, 2], 3, 4, 2, 8)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case[:3]]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        plain.branch_attention(*strided, *case[3:]), plain.branch_attention(*case)
    )


@st.composite
def attention_cases(draw):
    Hkv = draw(st.integers(1, 3))
    case = attention_case(
        draw(st.lists(st.integers(0, 40), min_size=1, max_size=3)),
        draw(st.integers(1, 9)),
        Hkv * draw(st.integers(1, 3)),
        Hkv,
        draw(st.integers(1, 12)),
        page_size=draw(st.integers(1, 17)),
        mask=draw(st.sampled_from([IDENTITY, CHAIN, TREE])),
        seed=draw(st.integers(0, 999)),
    )
    sinks = random(case[0].shape[2]) if draw(st.booleans()) else None
    return case, (draw(st.integers(0, 45)), draw(st.sampled_from([0.0, 0.5, 3.0])), sinks)


@given(attention_cases())
def test_attention_of_any_shape(drawn):
    case, options = drawn
    assert_attention(case, *options)


# ---- select --------------------------------------------------------------------------------------


def naive_select(hidden, weight, bias, logprobs, w, temperature, noise):
    """One row -> (branch, reward, score)."""
    rewards = [sum(a * b for a, b in zip(row, weight, strict=True)) + bias for row in hidden]
    faulty = not all(map(math.isfinite, rewards))
    if faulty or any(map(math.isnan, logprobs)):
        return 0, (NAN if faulty else rewards[0]), NAN
    scores = [p + w * r for p, r in zip(logprobs, rewards, strict=True)]
    keys = [s / temperature + n for s, n in zip(scores, noise, strict=True)]
    branch = keys.index(max(keys))
    return branch, rewards[branch], scores[branch]


def assert_select(hidden, weight, bias, logprobs, w, temperature, noise):
    branch, reward, score = plain.select(hidden, weight, bias, logprobs, w, temperature, noise)
    assert branch.dtype == torch.int64
    assert reward.dtype == score.dtype == torch.float32
    for b in range(len(hidden)):
        wanted = naive_select(
            hidden[b].tolist(),
            weight.tolist(),
            0.0 if bias is None else bias.item(),
            logprobs[b].tolist(),
            w[b].item(),
            temperature[b].item(),
            noise[b].tolist(),
        )
        got = (branch[b].item(), reward[b].item(), score[b].item())
        assert got == pytest.approx(wanted, rel=1e-6, nan_ok=True)


def select_case(B=3, k=5, H=8, dtype=torch.float32, seed=0):
    """Values on a grid of eighths, where float32 is exact and ties are frequent."""

    def grid(*shape, more=0, span=16):
        return random(*shape, seed=seed + more).mul(span / 4).round().div(8)

    return [
        grid(B, k, H, more=1).to(dtype),
        grid(H, more=2).to(dtype),
        grid(1, more=3).to(dtype),
        -grid(B, k, more=4).abs().sort(dim=1).values,
        grid(B, more=5),
        torch.full((B,), 0.5),
        grid(B, k, more=6),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "k", "H"), [(1, 1, 1), (3, 5, 8), (17, 10, 33), (2, 128, 16)])
def test_select_takes_the_best_of_each_row(B, k, H, dtype):
    assert_select(*select_case(B, k, H, dtype))


def test_a_head_without_bias():
    case = select_case()
    case[2] = None
    assert_select(*case)


def test_equal_scores_go_to_the_first_candidate():
    hidden = torch.tensor([[[1.0], [2.0], [2.0], [0.0]]])
    arguments = hidden, torch.ones(1), None, torch.full((1, 4), -1.0)
    one, zeros = torch.ones(1), torch.zeros(1, 4)
    assert plain.select(*arguments, one, one, zeros)[0].tolist() == [1]
    assert plain.select(*arguments, one * 0, one, zeros)[0].tolist() == [0]
    assert plain.select(*arguments, -one, one, zeros)[0].tolist() == [3]


def test_each_row_has_its_own_weight_and_temperature():
    hidden = torch.tensor([[1.0], [0.0]]).expand(3, 2, 1)
    logprobs = torch.tensor([[-2.0, -0.5]]).expand(3, 2)
    w, temperature = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 4.0])
    noise = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    branch, reward, score = plain.select(
        hidden, torch.ones(1), None, logprobs, w, temperature, noise
    )
    assert branch.tolist() == [1, 0, 0]
    assert reward.tolist() == [0.0, 1.0, 1.0]
    assert score.tolist() == [-0.5, 0.0, -2.0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_reward_that_is_not_finite_marks_its_row_and_no_other(bad):
    case = select_case()
    case[0][1, 4, 0] = bad
    case[1][0] = 1.0
    branch, reward, score = plain.select(*case)
    assert branch[1] == 0
    assert score.isnan().tolist() == reward.isnan().tolist() == [False, True, False]
    assert_select(*case)


def test_a_nan_logprob_marks_the_score_and_leaves_the_reward():
    case = select_case()
    case[3][2] = NAN
    _, reward, score = plain.select(*case)
    assert score.isnan().tolist() == [False, False, True]
    assert not reward.isnan().any()
    assert_select(*case)


def test_a_candidate_of_probability_zero_is_not_taken():
    case = select_case()
    case[3][:, 2:] = -INF
    branch, _, score = plain.select(*case)
    assert (branch < 2).all()
    assert score.isfinite().all()
    assert_select(*case)


@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 999),
    st.sampled_from([0.25, 1.0, 2.0]),
)
def test_select_of_any_shape(B, k, H, seed, temperature):
    case = select_case(B, k, H, seed=seed)
    case[5].fill_(temperature)
    assert_select(*case)


# ---- commit --------------------------------------------------------------------------------------


def commit_case(lengths, N=4, L=3, Hkv=2, D=5, page_size=16, dtype=torch.float32):
    B = len(lengths)
    P = max(lengths) // page_size + 1
    order = 1 + torch.randperm(B * P, generator=torch.Generator().manual_seed(1))
    return [
        random(L, B, N, Hkv, D, seed=1, dtype=dtype),
        random(L, B, N, Hkv, D, seed=2, dtype=dtype),
        torch.arange(B) % N,
        random(L, 1 + B * P, page_size, Hkv, D, seed=3, dtype=dtype),
        random(L, 1 + B * P, page_size, Hkv, D, seed=4, dtype=dtype),
        order.view(B, P).int(),
        torch.tensor(lengths, dtype=torch.int32),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [[0], [15], [16], [17, 0, 31, 32]], ids=str)
def test_commit_writes_the_winner_after_the_prefix_and_nothing_else(lengths, dtype):
    tail_k, tail_v, branch, k_pages, v_pages, table, length = commit_case(lengths, dtype=dtype)
    wanted_k, wanted_v = k_pages.clone(), v_pages.clone()
    for layer in range(len(tail_k)):
        for b, t in enumerate(lengths):
            page = int(table[b, t // 16])
            wanted_k[layer, page, t % 16] = tail_k[layer, b, int(branch[b])]
            wanted_v[layer, page, t % 16] = tail_v[layer, b, int(branch[b])]
    assert plain.commit(tail_k, tail_v, branch, k_pages, v_pages, table, length) is None
    assert torch.equal(k_pages, wanted_k)
    assert torch.equal(v_pages, wanted_v)
    assert length.tolist() == [t + 1 for t in lengths]


def test_a_committed_row_is_attended_like_one_that_was_always_there():
    case = attention_case([15, 20, 0], 4, 4, 2, 8)
    q, tail_k, tail_v, k_pages, v_pages, table, lengths, _, scale = case
    table = torch.cat([table, torch.zeros_like(table[:, :1])], dim=1)
    table[2, 0] = 0  # the empty sequence writes to the one page that nobody else has
    pages = k_pages[None].clone(), v_pages[None].clone()
    branch = torch.tensor([2, 0, 3])
    plain.commit(tail_k[None], tail_v[None], branch, *pages, table, lengths)
    one = torch.eye(1, dtype=torch.bool)
    out = plain.branch_attention(
        q[:, :1], tail_k[:, :1], tail_v[:, :1], pages[0][0], pages[1][0], table, lengths, one, scale
    )
    for b, n in enumerate([15, 20, 0]):
        chain = torch.tensor([[True, False], [True, True]])
        row = int(branch[b])
        two = [x[b : b + 1, [row, 0]] for x in (tail_k, tail_v)]
        wanted = naive_attention(
            q[b : b + 1, [0, 0]], *two, k_pages, v_pages, table[b : b + 1], [n], chain, scale
        )
        torch.testing.assert_close(out[b, 0].double(), torch.from_numpy(wanted[0, 1]))


# ---- select_commit -------------------------------------------------------------------------------


def select_commit_case(lengths, k=4):
    tail_k, tail_v, _, *cache = commit_case(lengths, N=k)
    return (*select_case(len(lengths), k), tail_k, tail_v, *cache)


@pytest.mark.parametrize("lengths", [[0], [15], [17, 0, 31, 32]], ids=str)
def test_select_commit_is_select_and_then_commit(lengths):
    case = select_commit_case(lengths)
    case[0][0, 1, 0] = NAN  # a broken row commits its branch 0
    apart = [x.clone() for x in case]
    branch, reward, score = plain.select(*apart[:7])
    plain.commit(*apart[7:9], branch, *apart[9:])
    assert branch[0] == 0
    for op in (plain.select_commit, ops.select_commit):
        together = [x.clone() for x in case]
        got = op(*together)
        for x, wanted in zip((*got, *together), (branch, reward, score, *apart), strict=True):
            torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


def with_table(test):
    def run(*args):
        before = {op: dict(found) for op, found in backends.TABLE["cpu"].items()}
        try:
            test(*args)
        finally:
            backends.TABLE["cpu"].update(before)

    return run


@with_table
def test_a_backend_with_both_parts_has_the_whole():
    called = []

    def part(op):
        return lambda *args: called.append(op) or getattr(plain, op)(*args)

    backends.offer("spy", "cpu", "commit", part("commit"))
    assert "spy" not in backends.TABLE["cpu"]["select_commit"]
    backends.offer("spy", "cpu", "select", part("select"))
    case = select_commit_case([15, 3])
    with ops.use_backend("spy"):
        ops.select_commit(*case)
    assert called == ["select", "commit"]
    assert case[-1].tolist() == [16, 4]


@pytest.mark.parametrize("first", [True, False])
def test_a_fused_implementation_goes_before_the_composition(first):
    @with_table
    def check():
        offers = [("select", plain.select), ("commit", plain.commit)]
        offers.insert(0 if first else 2, ("select_commit", plain.select_commit))
        for op, implementation in offers:
            backends.offer("spy", "cpu", op, implementation)
        assert backends.TABLE["cpu"]["select_commit"]["spy"] is plain.select_commit

    check()


@with_table
def test_the_order_of_backends_is_not_the_order_of_their_offers():
    for backend in ("later", "cpp", "torch"):
        backends.offer(backend, "cpu", "select", plain.select)
    assert list(backends.TABLE["cpu"]["select"]) == ["cpp", "torch", "later"]


# ---- registration --------------------------------------------------------------------------------


def op_cases():
    attention = attention_case([17, 2], 3, 4, 2, 8)
    attention[3], attention[4] = (torch.nan_to_num(pages) for pages in attention[3:5])
    return {
        "topk_logprobs": [(random(3, 50), 7), (random(2, 50, dtype=torch.bfloat16), 1)],
        "branch_attention": [(*attention, 0, 0.0, None), (*attention, 5, 2.0, torch.ones(4))],
        "select": [tuple(select_case()), (*select_case()[:2], None, *select_case()[3:])],
        "commit": [tuple(commit_case([15, 3]))],
        "select_commit": [select_commit_case([15, 3])],
    }


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_the_registered_op_keeps_torchs_rules(op):
    for arguments in op_cases()[op]:
        torch.library.opcheck(getattr(torch.ops.args_fast, op).default, arguments)


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_the_registered_op_runs_what_the_table_says(op):
    called = []

    def spy(*args):
        called.append(op)
        return getattr(plain, op)(*args)

    before = dict(backends.TABLE["cpu"][op])
    try:
        backends.offer("spy", "cpu", op, spy)
        with ops.use_backend("spy"):
            getattr(ops, op)(*op_cases()[op][0])
        with ops.use_backend("torch"):
            getattr(ops, op)(*op_cases()[op][0])
        assert called == [op]
    finally:
        backends.TABLE["cpu"][op] = before
