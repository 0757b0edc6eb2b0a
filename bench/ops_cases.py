"""The cases of the op benchmark: inputs, our implementations, their peers, and what each must give.

A peer is what one would write, or install, instead of our op. Every implementation is compared with
``args_fast.ops.plain`` on the same inputs before it is timed. (Longer than other files: six ops
with their peers, which share nothing but ``Prepared``.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from args_fast.bench import models
from args_fast.machine import available_memory
from args_fast.models import compact
from args_fast.ops import cpp, plain
from args_fast.ops.backends import TABLE

PAGE_SIZE = 16
# Largest difference that rounding explains, absolute and relative. Peers keep their weights in 16
# bits between the two products of an attention, which ours do not.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}
Call = Callable[[], Any]
Sizes = dict[str, int]  # the axes of an op by name


@dataclass(frozen=True)
class Case:
    """One op at one size."""

    op: str
    sizes: Sizes

    @property
    def name(self) -> str:
        return f"{self.op} " + " ".join(f"{axis}={size}" for axis, size in self.sizes.items())


@dataclass
class Prepared:
    """A case with its inputs in memory.

    Attributes:
        floor: Bytes that one call must move.
        plainly: The call whose output is right.
        changed: Tensors that a call writes; the last holds lengths, which ``reset`` puts back.
        per_call: How often one call makes the op.
        calls: Name -> what is timed; ours are named by their backend alone.
        forms: Name -> how the call's result becomes that of ``plainly``, where it is not.
        ours: Names of our implementations.
    """

    floor: int
    plainly: Call
    changed: tuple[Tensor, ...] = ()
    per_call: int = 1
    calls: dict[str, Call] = field(default_factory=dict)
    forms: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    ours: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._lengths = self.changed[-1].clone() if self.changed else None
        self.expected = self._output(self.plainly)

    def add(self, op: str, *arguments: Any) -> "Prepared":
        """Every backend that has the op here; torch's is a peer of the others."""
        for backend, implementation in TABLE[arguments[0].device.type][op].items():
            if backend != "torch":
                self.ours.add(backend)
            self.calls[backend] = partial(implementation, *arguments)
        return self

    def reset(self) -> None:
        """Put back what calls change."""
        if self._lengths is not None:
            self.changed[-1].copy_(self._lengths)

    def difference(self, name: str) -> float | None:
        """None where a call gives what is wanted, as far as rounding allows; else by how much."""
        form = self.forms.get(name, lambda out: out)
        return difference(self._output(lambda: form(self.calls[name]())), self.expected)

    def _output(self, call: Call) -> tuple[Tensor, ...]:
        for tensor in self.changed[:-1]:
            tensor.zero_()
        self.reset()
        out = call()
        outputs = () if out is None else out if isinstance(out, tuple) else (out,)
        outputs = (*outputs, *(tensor.clone() for tensor in self.changed))
        self.reset()
        return outputs


# Sizes of each axis, the typical one first; the cases are it, and it with one axis changed.
COMMITTED = {"L": (32,), "B": (1, 8, 64), "N": (10, 40), "Hkv": (8, 32), "D": (128,)}
AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "branch_attention": {
        "t": (1024, 4096, 128, 16384),
        "N": (10, 40, 1),
        "Hq": (32,),
        "Hkv": (32, 8),
        "D": (128, 64, 80),
        "B": (1, 8, 32),
    },
    "topk_logprobs": {"V": (50272, 128256, 32000, 262144), "B": (1, 8, 64), "k": (10, 40)},
    "select": {"B": (1, 8, 64), "k": (10, 40), "H": (4096, 768)},
    "commit": COMMITTED,
    "select_commit": {**COMMITTED, "H": (4096,)},
}
# For rehearsals: the same program at sizes of no interest. The first prefix is split over blocks,
# whose last one merges what they found; 5003 logits are two blocks of the CUDA op, and 24 layers
# three, and the last one to end merges.
TOY_COMMITTED = {"B": (2,), "N": (3,), "Hkv": (8, 2), "D": (64, 16)}
TOY_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "branch_attention": {
        "t": (1500, 33, 5),
        "N": (3, 1),
        "Hq": (4,),
        "Hkv": (2,),
        "D": (16,),
        "B": (2, 1),
    },
    "topk_logprobs": {"V": (5003, 997), "B": (2, 1), "k": (10,)},
    "select": {"B": (2,), "k": (10,), "H": (48,)},
    "commit": {**TOY_COMMITTED, "L": (2,)},
    "select_commit": {**TOY_COMMITTED, "L": (24, 2), "H": (48,)},
}
# The linear layers of these models: each, and then q, k and v, or gate and up, as one.
LINEAR_MODELS = ("opt-2.7b", "opt-350m", "opt-125m", "qwen3-0.6b", "llama-7b", "llama-3-8b")
MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
LINEAR_ROWS = (1, 10, 16, 20, 40)
TOY_ROWS, TOY_LAYERS = (1, 3), ((96, 32, 1), (64, 1024, 0))


def cases(toy: bool = False, op: str | None = None) -> list[Case]:
    """The cases of one op, or of those of a step: the ops in turn, each with its typical sizes
    first. Of linear: layer by layer."""
    if op == "linear":
        rows, layers = (TOY_ROWS, TOY_LAYERS) if toy else (LINEAR_ROWS, linear_layers())
        return [
            Case(op, {"M": M, "N": N, "K": K, "bias": bias}) for N, K, bias in layers for M in rows
        ]
    columns = []
    for name, axes in (TOY_AXES if toy else AXES).items():
        if op in (None, name):
            typical = {axis: sizes[0] for axis, sizes in axes.items()}
            others = [typical | {axis: n} for axis, sizes in axes.items() for n in sizes[1:]]
            columns.append([Case(name, sizes) for sizes in (typical, *others)])
    return [case for row in zip_longest(*columns) for case in row if case is not None]


def linear_layers() -> list[tuple[int, int, int]]:
    """The shapes of all layers, and then of the merged ones."""
    single, merged = [], []
    for model in LINEAR_MODELS:
        for parent in models.language_model(model, "meta").modules():
            children = parent.named_children()
            layers = {name: child for name, child in children if isinstance(child, nn.Linear)}
            single += [_shape(layer) for layer in layers.values()]
            groups = [names for names in MERGED if set(names) <= layers.keys()]
            merged += [_shape(*(layers[name] for name in names)) for names in groups]
    return list(dict.fromkeys(single + merged))


def _shape(*layers: nn.Linear) -> tuple[int, int, int]:
    """N and K of the weights of these layers as one, and 1 for a bias or 0."""
    N = sum(layer.out_features for layer in layers)
    return N, layers[0].in_features, int(layers[0].bias is not None)


def prepare(case: Case, device: torch.device, dtype: torch.dtype | None = None) -> Prepared:
    """A case in a type, by default bfloat16 on CUDA and float32 elsewhere; int8 stands for weights
    of 8 bits next to rows of float32, which only linear has. Raises torch.OutOfMemoryError where
    the case does not fit into memory."""
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    make: dict[str, Callable[..., Prepared]] = {
        "topk_logprobs": _topk,
        "branch_attention": _attention,
        "select": _select,
        "commit": _commit,
        "select_commit": _commit,
        "linear": _linear,
    }
    with torch.inference_mode(), device:
        return make[case.op](dtype, **case.sizes)


def difference(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float | None:
    """None where the tensors agree as far as rounding allows, or the largest difference."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        tolerance = TOLERANCE.get(b.dtype, 0.0)  # numbers of tokens and rows are equal, or wrong
        # Over long prefixes outputs are small, and so is what an absolute error may be.
        size = min(1.0, b.float().square().mean().sqrt().nan_to_num(1.0).item())
        if not torch.allclose(a.to(b.dtype), b, atol=tolerance * size, rtol=tolerance):
            worst = max(worst, (a.double() - b.double()).abs().nan_to_num(torch.inf).max().item())
    return worst or None


def _room(size: int, what: str) -> None:
    """Raises torch.OutOfMemoryError where ``size`` bytes are more than half of what is free."""
    device = torch.get_default_device()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_memory()
    if size > free // 2:
        gib = f"{size / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
        raise torch.OutOfMemoryError(f"{what} takes {gib}")


# ---- topk_logprobs -------------------------------------------------------------------------------


def _topk(dtype: torch.dtype, *, V: int, B: int, k: int) -> Prepared:
    # Distinct logits, so that torch.topk, which promises nothing of ties, must find the same ids.
    # In 16 bits that is not possible for a whole vocabulary, but it is for its top.
    logits = torch.randn(B, V).clamp(max=3.0)
    top = 4 + torch.arange(k + 1) / 4
    for row in logits:
        row[torch.randperm(V)[: k + 1]] = top
    logits = logits.to(dtype)
    floor = B * V * dtype.itemsize + B * k * 12
    prepared = Prepared(floor, lambda: plain.topk_logprobs(logits, k))
    prepared.add("topk_logprobs", logits, k)

    def composed() -> tuple[Tensor, Tensor]:
        values, ids = torch.topk(logits, k)
        return values.float() - torch.logsumexp(logits.float(), dim=1, keepdim=True), ids

    prepared.calls["torch.topk + logsumexp"] = composed
    return prepared


# ---- branch_attention ----------------------------------------------------------------------------


def _attention(
    dtype: torch.dtype, *, t: int, N: int, Hq: int, Hkv: int, D: int, B: int
) -> Prepared:
    prefix = 2 * B * t * Hkv * D * dtype.itemsize
    _room(3 * prefix, "the prefix, in pages for us and in one piece for the peer,")
    P = -(-t // PAGE_SIZE)
    table = torch.randperm(B * P).view(B, P).int()
    pages = [torch.randn(B * P, PAGE_SIZE, Hkv, D, dtype=dtype) for _ in range(2)]
    lengths = torch.full((B,), t, dtype=torch.int32)
    q = torch.randn(B, N, Hq, D, dtype=dtype)
    tail = [torch.randn(B, N, Hkv, D, dtype=dtype) for _ in range(2)]
    mask = torch.eye(N, dtype=torch.bool)
    options: tuple[Any, ...] = (mask, D**-0.5, 0, 0.0, None)

    def plainly() -> Tensor:
        # One sequence at a time: the plain op holds a prefix in float32, and its scores.
        outputs = []
        for b in range(B):
            row: list[Any] = [x[b : b + 1] for x in (q, *tail, table, lengths)]
            outputs.append(plain.branch_attention(*row[:3], *pages, *row[3:], *options))
        return torch.cat(outputs)

    floor = prefix + 2 * B * N * (Hkv + Hq) * D * dtype.itemsize
    prepared = Prepared(floor, plainly)
    prepared.add("branch_attention", q, *tail, *pages, table, lengths, *options)
    # The peer has the prefix in one piece, with the tail after it, and a mask over both. The heads
    # of a group are rows: with enable_gqa a mask would rule out the fast kernels.
    whole = [x[table.long()].view(B, P * PAGE_SIZE, Hkv, D)[:, :t] for x in pages]
    keys, values = (
        torch.cat(pair, dim=1).transpose(1, 2).contiguous()
        for pair in zip(whole, tail, strict=True)
    )
    G = Hq // Hkv
    rows = q.view(B, N, Hkv, G, D).permute(0, 2, 1, 3, 4).reshape(B, Hkv, N * G, D)
    seen = torch.cat([torch.ones(N, t, dtype=torch.bool), mask], dim=1)
    seen = seen.repeat_interleave(G, dim=0)
    prepared.calls["SDPA, mask over one prefix"] = lambda: scaled_dot_product_attention(
        rows, keys, values, attn_mask=seen
    )
    prepared.forms["SDPA, mask over one prefix"] = lambda out: (
        out.view(B, Hkv, N, G, D).permute(0, 2, 1, 3, 4).reshape(B, N, Hq, D)
    )
    return prepared


# ---- select, commit, select_commit ---------------------------------------------------------------

STEPS = 112  # that pages must hold: calls of one implementation between two resets


def _to_select(dtype: torch.dtype, B: int, k: int, H: int) -> tuple:
    return (
        torch.randn(B, k, H, dtype=dtype),
        torch.randn(H, dtype=dtype) / H**0.5,
        None,
        -torch.randn(B, k).abs().sort(dim=1).values,
        torch.full((B,), 1.5),
        torch.ones(B),
        torch.zeros(B, k),
    )


def _select(dtype: torch.dtype, *, B: int, k: int, H: int) -> Prepared:
    arguments = _to_select(dtype, B, k, H)
    floor = (B * k + 1) * H * dtype.itemsize + 8 * B * k
    return Prepared(floor, lambda: plain.select(*arguments)).add("select", *arguments)


def _commit(
    dtype: torch.dtype,
    *,
    L: int,
    B: int,
    N: int,
    Hkv: int,
    D: int,
    H: int = 0,
) -> Prepared:
    """commit; with H, select_commit."""
    P = STEPS // PAGE_SIZE + 1
    row = L * Hkv * D * dtype.itemsize
    _room(2 * row * (3 * B * P * PAGE_SIZE + B * N), "it")
    tail = [torch.randn(L, B, N, Hkv, D, dtype=dtype) for _ in range(2)]
    shape = (L, B * P, PAGE_SIZE, Hkv, D)
    pages = [torch.zeros(shape, dtype=dtype) for _ in range(2)]
    table = torch.randperm(B * P).view(B, P).int()
    lengths = torch.arange(B, dtype=torch.int32) % PAGE_SIZE
    branch = torch.arange(B) % N
    chosen = _to_select(torch.float32, B, N, H) if H else ()

    def plainly() -> tuple:
        out = plain.select(*chosen) if H else (branch,)
        plain.commit(*tail, out[0], *pages, table, lengths)  # type: ignore[call-arg]
        return out if H else ()

    floor = 4 * B * row + ((B * N + 1) * H * 4 + 8 * B * N if H else 0)
    prepared = Prepared(floor, plainly, (*pages, lengths))
    if H:
        return prepared.add("select_commit", *chosen, *tail, *pages, table, lengths)
    return prepared.add("commit", *tail, branch, *pages, table, lengths)


# ---- linear --------------------------------------------------------------------------------------

COPIES, SPREAD = 256, 4  # of the weights at most; times the last cache that they fill together
CPU_CACHE = 2**25  # bytes: what a CPU has in its last cache, about


def _linear(dtype: torch.dtype, *, M: int, N: int, K: int, bias: int) -> Prepared:
    """The product of M rows with weights [N, K]. A call makes it with one copy of the weights after
    the other, as many as the last cache cannot hold, so that each of them comes from memory."""
    copies = max(2, min(COPIES, -(-SPREAD * CPU_CACHE // (N * K * dtype.itemsize))))
    integers, dtype = dtype == torch.int8, torch.float32 if dtype == torch.int8 else dtype
    x = torch.randn(M, K, dtype=dtype)
    weights = [torch.randn(N, K, dtype=dtype) / K**0.5 for _ in range(copies)]
    added = torch.randn(N, dtype=dtype) if bias else None
    operands: list[tuple] = [(weight, added) for weight in weights]

    def through(multiply: Callable[..., Tensor], operands: list[tuple] = operands) -> Call:
        return lambda: [multiply(x, *copy) for copy in operands][-1]

    def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wide = None if bias is None else bias.double()
        return linear(x.double(), weight.double(), wide).to(dtype)

    floor = dtype.itemsize * (N * K + M * K + M * N + bias * N)
    if integers:  # next to torch's product with what the weights stand for
        small = [compact.quantized(weight) for weight in weights]
        by_torch = through(linear, [(n.float() * scale[:, None], added) for n, scale in small])
        product = torch.ops.args_fast_cpp.linear.default
        by_cpp = through(product, [(n, added, scale) for n, scale in small])
        calls = {"cpp": by_cpp, "torch, float32": by_torch}
        floor += 4 * N - 3 * N * K
        return Prepared(floor, by_torch, per_call=copies, calls=calls, ours={"cpp"})
    prepared = Prepared(floor, through(exact), per_call=copies)
    if cpp.status() == "built":
        prepared.ours.add("cpp")
        prepared.calls["cpp"] = through(torch.ops.args_fast_cpp.linear.default)
    prepared.calls["torch"] = through(linear)
    return prepared
