"""Inputs of the ops over the shapes that hurt, for every implementation of them."""

import math

import torch
from hypothesis import strategies as st

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One unit in the last place of the output, beside what sums in another order differ by.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SPLIT, CHUNK = 256, 8192  # of the kernels: where work is cut in pieces


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def siblings(N):
    return torch.eye(N, dtype=torch.bool)


def chain(N):
    return torch.ones(N, N, dtype=torch.bool).tril()


def tree(N, seed=0):
    """Every row hangs on an earlier one, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    mask = siblings(N)
    for i in range(1, N):
        mask[i] |= mask[int(torch.randint(i, (1,), generator=generator))]
    return mask


def wider(tensor, strided):
    """The same values in memory that is not contiguous, the last dimension excepted."""
    if not strided:
        return tensor
    room = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 3), 9.0).to(tensor.dtype)
    room[..., : tensor.shape[-1]] = tensor
    return room[..., : tensor.shape[-1]]


def attention_case(
    lengths, N, Hq, Hkv, D, *, page_size=16, mask=None, dtype=torch.float32, seed=0, strided=False
):
    """Pages in no particular order, with NaN in every row that no sequence owns."""
    B, P = len(lengths), max(1, -(-max(lengths) // page_size))
    order = 1 + torch.randperm(B * P, generator=torch.Generator().manual_seed(seed))
    table = order.view(B, P).int()
    pages = [random(1 + B * P, page_size, Hkv, D, seed=seed + i) for i in (1, 2)]
    owned = torch.zeros(1 + B * P, page_size, dtype=torch.bool)
    for b, length in enumerate(lengths):
        for token in range(length):
            owned[table[b, token // page_size], token % page_size] = True
        table[b, -(-length // page_size) :] = 0
    pages = [wider(x.masked_fill(~owned[:, :, None, None], NAN).to(dtype), strided) for x in pages]
    rows = [
        random(B, N, heads, D, seed=seed + 3 + i, dtype=dtype)
        for i, heads in enumerate((Hq, Hkv, Hkv))
    ]
    if strided:  # as models hand them over: [B, H, N, D], turned
        rows = [wider(x.transpose(1, 2), True).transpose(1, 2) for x in rows]
        table = wider(table, True)
    return [
        *rows,
        *pages,
        table,
        torch.tensor(lengths, dtype=torch.int32),
        siblings(N) if mask is None else mask,
        D**-0.5,
    ]


@st.composite
def attention_cases(draw):
    borders = st.sampled_from([0, 1, 15, 16, 17, 31, 33, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT])
    N, Hkv = draw(st.sampled_from([1, 1, 2, 3, 4, 5, 7, 10, 17])), draw(st.integers(1, 3))
    D = draw(st.one_of(st.integers(1, 33), st.sampled_from([64, 80, 96, 127, 128, 255, 256])))
    Hq = Hkv * draw(st.integers(1, 5))
    seed = draw(st.integers(0, 999))
    case = attention_case(
        draw(st.lists(st.one_of(borders, st.integers(0, 90)), min_size=1, max_size=3)),
        N,
        Hq,
        Hkv,
        D,
        page_size=draw(st.sampled_from([1, 2, 7, 16, 33, 300])),
        mask=draw(st.sampled_from([siblings(N), chain(N), tree(N, seed)])),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=seed,
        strided=draw(st.booleans()),
    )
    window = draw(st.sampled_from([0, 0, 1, 2, 16, 40, SPLIT, 1000]))
    softcap = draw(st.sampled_from([0.0, 0.0, 0.5, 30.0]))
    sinks = draw(st.sampled_from([None, random(Hq), random(Hq, dtype=case[0].dtype)]))
    return case, (window, softcap, sinks)


@st.composite
def logits(draw):
    B = draw(st.integers(1, 3))
    V = draw(
        st.one_of(
            st.integers(1, 40),
            st.sampled_from([127, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5, 50272]),
        )
    )
    rows = random(B, V, seed=draw(st.integers(0, 999))) * draw(st.sampled_from([1.0, 5.0, 40.0]))
    if draw(st.booleans()):  # ties everywhere, zeros of both signs among them
        rows = rows.round() * draw(st.sampled_from([1.0, 0.0, -0.0]))
    special = st.sampled_from([-INF, -INF, -0.0, 0.0, 1e-40, -1e-40, 88.0, NAN, INF])
    for value in draw(st.lists(special, max_size=4)):
        rows[draw(st.integers(0, B - 1)), draw(st.integers(0, V - 1)) :: 3] = value
    rows = rows.to(draw(st.sampled_from(DTYPES)))
    return wider(rows, draw(st.booleans())), draw(st.integers(1, min(V, 200)))


def grid(*shape, seed):
    """Eighths, whose sums are exact in float32: a choice is right or wrong, and ties are many."""
    return random(*shape, seed=seed).mul(4).round().div(8)


@st.composite
def select_cases(draw):
    B, k = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 10, 40, 128]))
    H = draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 768])))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 999))
    hidden = grid(B, k, H, seed=seed).to(dtype)
    logprobs = -grid(B, k, seed=seed + 1).abs().sort(dim=1).values
    noise = grid(B, k, seed=seed + 2) * draw(st.sampled_from([0.0, 1.0]))
    w = grid(B, seed=seed + 3) * draw(st.sampled_from([0.0, 1.0, 8.0]))
    row = st.integers(0, B - 1)
    for value in draw(st.lists(st.sampled_from([NAN, INF, -INF]), max_size=2)):
        hidden[draw(row), draw(st.integers(0, k - 1)), draw(st.integers(0, H - 1))] = value
    for value in draw(st.lists(st.sampled_from([NAN, -INF, -INF]), max_size=2)):
        logprobs[draw(row), draw(st.integers(0, k - 1)) :] = value
    return [
        wider(hidden, draw(st.booleans())),
        grid(H, seed=seed + 4).to(dtype),
        draw(st.sampled_from([None, grid(1, seed=seed + 5).to(dtype)])),
        logprobs,
        w,
        torch.full((B,), draw(st.sampled_from([0.25, 1.0, 2.0]))),
        wider(noise, draw(st.booleans())),
    ]


def commit_case(lengths, N=4, L=3, Hkv=2, D=5, page_size=16, dtype=torch.float32, seed=0):
    B, P = len(lengths), max(lengths) // page_size + 1
    generator = torch.Generator().manual_seed(seed)
    order = 1 + torch.randperm(B * P, generator=generator)
    return [
        *(random(L, B, N, Hkv, D, seed=seed + i, dtype=dtype) for i in (1, 2)),
        torch.randint(N, (B,), generator=generator),
        *(random(L, 1 + B * P, page_size, Hkv, D, seed=seed + i, dtype=dtype) for i in (3, 4)),
        order.view(B, P).int(),
        torch.tensor(lengths, dtype=torch.int32),
    ]


@st.composite
def commit_cases(draw):
    lengths = st.sampled_from([0, 1, 14, 15, 16, 17, 31, 32, 47])
    return commit_case(
        draw(st.lists(lengths, min_size=1, max_size=4)),
        draw(st.sampled_from([1, 2, 15, 16, 17])),
        draw(st.integers(1, 5)),
        *draw(st.sampled_from([(1, 1), (2, 5), (3, 64)])),
        page_size=draw(st.sampled_from([1, 2, 15, 16, 17, 100])),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 999)),
    )


@st.composite
def select_commit_cases(draw):
    """The arguments of select, then those of commit without the branch."""
    chosen = draw(select_cases())
    B, k = chosen[0].shape[:2]
    lengths = draw(st.lists(st.sampled_from([0, 1, 15, 16, 17, 47]), min_size=B, max_size=B))
    head = draw(st.sampled_from([(1, 1), (2, 5), (3, 64)]))
    dtype, page_size = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([1, 7, 16]))
    committed = commit_case(lengths, k, draw(st.integers(1, 3)), *head, page_size, dtype=dtype)
    return [*chosen, *committed[:2], *committed[3:]]
