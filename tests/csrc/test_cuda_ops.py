"""The CUDA ops against the plain ones. Every claim is made twice: of the kernels as they run on the
CPU (emulation.py), and of the built ops on a device, where there is one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from emulation import emulated
from hypothesis import given, settings
from hypothesis import strategies as st

from args_fast.ops import cuda, plain

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan
ON_DEVICE = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda.status() != "built",
    reason=f"no CUDA device for the CUDA ops, or they are not built ({cuda.status()})",
)


@dataclass(frozen=True)
class Machine:
    """What runs the ops, and where their tensors lie."""

    device: str
    op: Callable  # (name, seed=, multiprocessors=) -> the op

    def run(self, name, *args, **options):
        return self.op(name, **options)(*args)


def on_device(name, **options):
    return getattr(torch.ops.args_fast_cuda, name)


MACHINES = [
    pytest.param(Machine("cpu", emulated), id="emulated"),
    pytest.param(Machine("cuda", on_device), id="device", marks=ON_DEVICE),
]
machines = pytest.mark.parametrize("machine", MACHINES)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inside(tensor, lead, gap, device):
    """The tensor on a device in the middle of NaN, ``lead`` elements after an aligned address,
    with ``gap`` elements between its rows: nobody may read next to it."""
    *outer, last = tensor.shape
    rows = math.prod(outer)
    wide = torch.full((lead + rows * (last + gap) + 16,), NAN, dtype=tensor.dtype, device=device)
    strides, step = [], last + gap
    for size in reversed(outer):
        strides.append(step)
        step *= size
    view = wide.as_strided(tensor.shape, (*reversed(strides), 1), lead)
    return view.copy_(tensor)


# ---- topk_logprobs -------------------------------------------------------------------------------


def assert_topk(machine, logits, k, *, lead=0, gap=0, seed=0):
    placed = inside(logits, lead, gap, machine.device)
    logprobs, ids = machine.run("topk_logprobs", placed, k, seed=seed)
    wanted, wanted_ids = plain.topk_logprobs(logits, k)
    assert torch.equal(ids.cpu(), wanted_ids)
    torch.testing.assert_close(logprobs.cpu(), wanted, atol=1e-5, rtol=1e-6, equal_nan=True)
    return logprobs, ids


# A tile is 2048 logits; a chunk is one of them up to 64 * 2048, then two, then three.
SHAPES = [
    *((1, 1, 1), (1, 7, 7), (3, 50, 10), (2, 257, 128), (1, 2048, 10), (1, 2049, 128)),
    *((2, 4099, 37), (1, 50257, 10), (1, 131073, 128)),
]


@machines
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "V", "k"), SHAPES)
def test_topk_is_that_of_the_sorted_log_softmax(machine, B, V, k, dtype):
    assert_topk(machine, random(B, V, seed=V, dtype=dtype) * 5, k, seed=V)


ROWS = {
    "random": lambda V, seed: random(V, seed=seed) * 5,
    "ties": lambda V, seed: random(V, seed=seed).mul(2).round(),
    "ascending": lambda V, seed: torch.arange(V) / 7 - 20,
    "descending": lambda V, seed: 20 - torch.arange(V) / 7,
    "constant": lambda V, seed: torch.full((V,), 1.5),
    "zeros": lambda V, seed: random(V, seed=seed).sign() * 0.0,
    "peaked": lambda V, seed: random(V, seed=seed).masked_fill(torch.arange(V) % 97 > 0, -INF),
    "huge": lambda V, seed: random(V, seed=seed) * 5e37,
    "tiny": lambda V, seed: random(V, seed=seed) * 1e-6,
}


@machines
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("k", [1, 40, 128])
def test_topk_of_rows_that_fill_the_buffer_or_tie(machine, kind, k):
    # Three tiles in a chunk: the threshold of one tile meets the next, in the worst order too.
    logits = ROWS[kind](262200, 1)[None]
    assert_topk(machine, logits, k, lead=3)


BROKEN = [NAN, INF, [NAN, INF], [-INF, NAN], -INF]


@machines
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", BROKEN, ids=str)
@pytest.mark.parametrize("V", [9, 5000])
def test_a_row_without_a_distribution_is_nan_and_its_neighbours_are_not(machine, V, bad, dtype):
    logits = random(3, V, dtype=dtype)
    if bad == -INF:
        logits[1] = -INF
    else:
        for i, value in enumerate(bad if isinstance(bad, list) else [bad]):
            logits[1, V - 1 - 3 * i] = value
    logprobs, ids = assert_topk(machine, logits, 7)
    assert logprobs.isnan().all(dim=1).tolist() == [False, True, False]
    assert ids[1].tolist() == list(range(7))


@machines
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_batch_at_any_address(machine, dtype):
    logits = random(3, 6007, dtype=dtype) * 4
    placed = (inside(logits, lead, 1, machine.device) for lead in range(3))
    batches = [machine.run("topk_logprobs", x, 50, seed=i) for i, x in enumerate(placed)]
    alone = inside(logits[1:2], 0, 0, machine.device)
    logprobs, ids = machine.run("topk_logprobs", alone, 50, seed=99)
    for batch in batches:
        assert torch.equal(batch[0][1], logprobs[0])
        assert torch.equal(batch[1][1], ids[0])


@machines
def test_the_order_of_threads_and_blocks_does_not_matter(machine):
    logits = random(2, 9001, dtype=torch.bfloat16).to(machine.device)
    first = machine.run("topk_logprobs", logits, 128, seed=0)
    for seed in range(1, 9):
        again = machine.run("topk_logprobs", logits, 128, seed=seed)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@st.composite
def topk_calls(draw):
    dtype = draw(st.sampled_from(DTYPES))
    V = draw(st.integers(1, 70) | st.integers(2040, 2060) | st.integers(4090, 4500))
    k = draw(st.integers(1, min(V, 128)))
    seed = draw(st.integers(0, 999))
    kinds = draw(st.lists(st.sampled_from(sorted(ROWS)), min_size=1, max_size=3))
    rows = torch.stack([ROWS[kind](V, seed + i) for i, kind in enumerate(kinds)]).to(dtype)
    special = st.sampled_from([NAN, INF, -INF, -0.0, 0.0, 88.0, -1e-30])
    at = st.tuples(st.integers(0, len(kinds) - 1), st.integers(0, V - 1))
    for (b, v), value in draw(st.dictionaries(at, special, max_size=4)).items():
        rows[b, v] = value
    return rows, k, draw(st.integers(0, 9)), draw(st.integers(0, 9)), seed


@machines
@given(call=topk_calls())
def test_topk_of_any_call(machine, call):
    logits, k, lead, gap, seed = call
    assert_topk(machine, logits, k, lead=lead, gap=gap, seed=seed)


@machines
@pytest.mark.parametrize(
    ("shape", "k", "word"), [((2, 50), 0, "k is 0"), ((2, 50), 51, "51"), ((2, 500), 129, "129")]
)
def test_topk_refuses_what_it_cannot_do(machine, shape, k, word):
    with pytest.raises(RuntimeError, match=word):
        machine.run("topk_logprobs", torch.zeros(shape, device=machine.device), k)


@machines
def test_a_batch_of_nothing(machine):
    logprobs, ids = machine.run("topk_logprobs", torch.zeros(0, 50, device=machine.device), 5)
    assert logprobs.shape == ids.shape == (0, 5)


# ---- select_commit -------------------------------------------------------------------------------


def select_commit_case(
    lengths,
    k=5,
    H=8,
    *,
    N=None,
    L=3,
    Hkv=2,
    D=5,
    page_size=16,
    dtype=torch.float32,
    weight_dtype=None,
    cache_dtype=None,
    seed=0,
):
    """Rewards on a grid, where every order of the sum gives the same float32; all else at will."""
    B, N = len(lengths), N or k
    P = max(lengths) // page_size + 1
    order = 1 + torch.randperm(B * P, generator=torch.Generator().manual_seed(seed))
    weight_dtype, cache_dtype = weight_dtype or dtype, cache_dtype or dtype

    def grid(*shape, more, dtype):
        return random(*shape, seed=seed + more).mul(4).round().div(8).to(dtype)

    return [
        grid(B, k, H, more=1, dtype=dtype),
        grid(H, more=2, dtype=weight_dtype),
        grid(1, more=3, dtype=weight_dtype),
        -random(B, k, seed=seed + 4).abs().sort(dim=1).values,
        random(B, seed=seed + 5),
        0.1 + random(B, seed=seed + 6).abs(),
        random(B, k, seed=seed + 7),
        random(L, B, N, Hkv, D, seed=seed + 8).to(cache_dtype),
        random(L, B, N, Hkv, D, seed=seed + 9).to(cache_dtype),
        random(L, 1 + B * P, page_size, Hkv, D, seed=seed + 10).to(cache_dtype),
        random(L, 1 + B * P, page_size, Hkv, D, seed=seed + 11).to(cache_dtype),
        order.view(B, P).int(),
        torch.tensor(lengths, dtype=torch.int32),
    ]


def placed(case, machine, *, lead=0, gap=0):
    """A copy of the case on a machine, floating tensors ``inside``."""
    outside = (7, 8, 9, 10)  # rows of heads must be contiguous: only moved
    return [
        None
        if x is None
        else inside(x, lead, 0 if i in outside or x.dim() == 1 else gap, machine.device)
        if x.is_floating_point()
        else x.to(machine.device, copy=True)
        for i, x in enumerate(case)
    ]


def assert_select_commit(machine, case, *, lead=0, gap=0, **options):
    ours = placed(case, machine, lead=lead, gap=gap)
    plains = [None if x is None else x.clone() for x in case]
    got = machine.run("select_commit", *ours, **options)
    wanted = plain.select_commit(*plains)
    for x, y in zip((*got, *ours), (*wanted, *plains), strict=True):
        if y is not None:
            torch.testing.assert_close(x.cpu(), y, rtol=0, atol=0, equal_nan=True)
    return got


@machines
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("k", "H"), [(1, 1), (5, 8), (10, 264), (16, 33), (17, 40), (128, 16), (10, 1032), (3, 4096)]
)
def test_select_commit_takes_the_best_and_writes_it(machine, k, H, dtype):
    assert_select_commit(machine, select_commit_case([3, 15, 16], k, H, dtype=dtype), seed=k)


@machines
@pytest.mark.parametrize("lengths", [[0], [15], [16], [17, 0, 31, 32]], ids=str)
@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_rows_are_written_after_any_prefix(machine, lengths, page_size):
    assert_select_commit(machine, select_commit_case(lengths, page_size=page_size))


@machines
@pytest.mark.parametrize("Hkv", [1, 8])
@pytest.mark.parametrize("D", [4, 8, 63, 64])
@pytest.mark.parametrize("lead", [0, 1])
def test_rows_of_any_size_at_any_address(machine, Hkv, D, lead):
    # In 16-byte units where size and address permit, else two bytes at a time.
    case = select_commit_case([7, 20], Hkv=Hkv, D=D, dtype=torch.bfloat16)
    assert_select_commit(machine, case, lead=lead, gap=lead)


@machines
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H", [1032, 4096])
def test_a_reward_has_the_same_bits_alone_and_in_a_batch_at_any_address(machine, H, dtype):
    case = select_commit_case([3, 4, 5], H=H, dtype=dtype)
    case[0], case[1] = random(*case[0].shape, dtype=dtype), random(H, seed=1, dtype=dtype)
    first = machine.run("select_commit", *placed(case, machine), seed=1)
    others = placed(case, machine, lead=1, gap=1)
    alone = [x[:, 1:2] if i in (7, 8) else x[1:2] for i, x in enumerate(others)]
    alone[1:3], alone[9:11] = others[1:3], others[9:11]
    for x, y in zip(first, machine.run("select_commit", *alone, seed=2), strict=True):
        assert torch.equal(x[1:2], y)


@machines
def test_many_blocks_share_one_sequence_and_advance_its_length_once(machine):
    case = select_commit_case([5, 40], L=24, Hkv=8, D=128, dtype=torch.float16)
    for seed in range(4):  # blocks in every order, tickets left clean
        assert_select_commit(machine, case, seed=seed)
    assert_select_commit(machine, case, multiprocessors=1)


@machines
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
def test_head_and_cache_have_types_of_their_own(machine, dtype, weight_dtype, cache_dtype):
    case = select_commit_case(
        [4], H=20, dtype=dtype, weight_dtype=weight_dtype, cache_dtype=cache_dtype
    )
    assert_select_commit(machine, case)


@machines
def test_a_head_without_bias_and_a_tail_longer_than_the_candidates(machine):
    case = select_commit_case([3, 2], N=9)
    case[2] = None
    assert_select_commit(machine, case)


@machines
def test_equal_values_go_to_the_first_candidate(machine):
    case = select_commit_case([3, 4], k=70)
    for i in (0, 3, 6):
        case[i].zero_()
    branch, _, _ = assert_select_commit(machine, case)
    assert branch.tolist() == [0, 0]
    case[6][0, 33:] = case[6][1, 69:] = 1.0
    branch, _, _ = assert_select_commit(machine, case)
    assert branch.tolist() == [33, 69]


@machines
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("candidate", [0, 1, 39])
def test_one_reward_that_is_not_finite_marks_its_row_and_no_other(machine, bad, candidate):
    case = select_commit_case([1, 2, 3], k=40)
    case[0][1, candidate, 0] = bad
    case[1][0] = 1.0
    branch, reward, score = assert_select_commit(machine, case)
    assert branch[1] == 0
    assert score.isnan().tolist() == reward.isnan().tolist() == [False, True, False]


@machines
def test_a_nan_logprob_marks_the_score_and_leaves_the_reward(machine):
    case = select_commit_case([1, 2, 3])
    case[3][2, 4] = NAN
    _, reward, score = assert_select_commit(machine, case)
    assert score.isnan().tolist() == [False, False, True]
    assert not reward.isnan().any()


@machines
def test_a_candidate_of_probability_zero_is_not_taken(machine):
    case = select_commit_case([1, 2])
    case[3][:, 2:] = -INF
    branch, _, score = assert_select_commit(machine, case)
    assert (branch < 2).all()
    assert score.isfinite().all()


@machines
@pytest.mark.parametrize("what", ["length", "negative", "page", "negative page"])
def test_a_place_outside_the_cache_is_not_written(machine, what):
    case = select_commit_case([3, 5])
    if what in ("length", "negative"):
        case[12][1] = 16 if what == "length" else -1
    else:
        case[11][1, 0] = case[9].shape[1] if what == "page" else -1
    ours = placed(case, machine)
    before = [x.clone() for x in ours[9:11]]
    _, reward, score = machine.run("select_commit", *ours)
    assert score.isnan().tolist() == [False, True]
    assert reward.isfinite().all()
    for pages, was in zip(ours[9:11], before, strict=True):
        changed = (pages != was).any(dim=(2, 3, 4)).any(dim=0).nonzero().flatten().tolist()
        assert changed == [int(case[11][0, 0])]


@machines
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    k=st.integers(1, 40),
    H=st.integers(1, 300),
    D=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    lead=st.integers(0, 3),
    gap=st.integers(0, 3),
    special=st.lists(
        st.tuples(st.sampled_from([0, 3, 4, 6]), st.sampled_from([NAN, INF, -INF, -0.0])),
        max_size=2,
    ),
    seed=st.integers(0, 999),
)
@settings(max_examples=40)
def test_select_commit_of_any_call(machine, lengths, k, H, D, dtype, lead, gap, special, seed):
    case = select_commit_case(lengths, k, H, D=D, dtype=dtype, seed=seed)
    for argument, value in special:
        flat = case[argument].view(-1)
        flat[(seed * 31) % len(flat)] = value
    assert_select_commit(machine, case, lead=lead, gap=gap, seed=seed)


REFUSED = [
    (0, lambda x: x.double(), "float32"),
    (1, lambda x: x[:-1], "head_weight"),
    (3, lambda x: x[:, :-1], "logprobs"),
    (4, lambda x: x.double(), "w has the wrong dtype"),
    (6, lambda x: x.T.contiguous().T, "noise"),
    (7, lambda x: x[:, :, :3], "the tail"),
    (8, lambda x: x[..., :-1], "the tail"),
    (9, lambda x: x.bfloat16(), "the pages"),
    (10, lambda x: x[:, :, :4], "the pages"),
    (11, lambda x: x.long(), "page_table"),
    (12, lambda x: x[:1], "lengths"),
]


@machines
@pytest.mark.parametrize(("argument", "change", "word"), REFUSED)
def test_select_commit_refuses_what_it_cannot_do(machine, argument, change, word):
    case = placed(select_commit_case([3, 4]), machine)
    case[argument] = change(case[argument])
    with pytest.raises(RuntimeError, match=word):
        machine.run("select_commit", *case)
    if argument != 12:
        assert case[12].tolist() == [3, 4]


@machines
def test_a_tail_shorter_than_the_candidates_is_refused(machine):
    with pytest.raises(RuntimeError, match="fewer rows"):
        machine.run("select_commit", *placed(select_commit_case([3], k=5, N=4), machine))


# ---- what only a device shows --------------------------------------------------------------------

DEVICE = Machine("cuda", on_device)


@ON_DEVICE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("B", "V", "k"), [(1, 128256, 10), (64, 128256, 128), (3, 262144, 100), (7, 1000003, 50)]
)
def test_large_vocabularies(B, V, k, dtype):
    logits = random(B, V, seed=V, dtype=dtype)  # 16-bit ones tie across the k-th place
    first = assert_topk(DEVICE, logits, k, lead=1)
    placed = inside(logits, 1, 0, "cuda")
    for _ in range(4):  # blocks run in another order each time
        again = DEVICE.run("topk_logprobs", placed, k)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@ON_DEVICE
def test_a_captured_step_replays_with_new_inputs():
    case = placed(select_commit_case([3, 20], k=10, H=512, L=16, Hkv=8, D=64), DEVICE)
    logits = torch.zeros(2, 50257, device="cuda")
    case[12].zero_()  # the table stays: no two sequences may write to one page

    def step():
        case[3].copy_(DEVICE.run("topk_logprobs", logits, 10)[0])
        return DEVICE.run("select_commit", *case)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    case[12].zero_()
    for seed in range(8):
        logits.copy_(random(2, 50257, seed=seed))
        case[0].copy_(random(*case[0].shape, seed=seed).mul(4).round().div(8))
        expected = [x.clone() for x in case]
        expected[3] = plain.topk_logprobs(logits, 10)[0]
        wanted = plain.select_commit(*expected)
        graph.replay()
        for x, y in zip((*outputs, *case), (*wanted, *expected), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        assert case[12].tolist() == [seed + 1] * 2


@ON_DEVICE
def test_streams_do_not_disturb_each_other():
    streams = [torch.cuda.Stream() for _ in range(4)]
    logits = [random(4, 128256, seed=i).cuda() for i in range(4)]
    wanted = [plain.topk_logprobs(x, 64)[1] for x in logits]
    torch.cuda.synchronize()
    got = [[] for _ in streams]
    for _ in range(50):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[i].append(DEVICE.run("topk_logprobs", logits[i], 64)[1])
    torch.cuda.synchronize()
    for of_stream, right in zip(got, wanted, strict=True):
        assert all(torch.equal(ids, right) for ids in of_stream)
