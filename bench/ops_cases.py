"""The cases of the op benchmark: inputs, our implementations, their peers, and what each must give.

A peer is what one would write, or install, instead of our op. Every implementation is compared with
``args_fast.ops.plain`` on the same inputs before it is timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from args_fast.ops import plain
from args_fast.ops.backends import TABLE
from args_fast.ops.schemas import SCHEMAS

PAGE_SIZE = 16
# Largest difference that rounding explains, absolute and relative. Peers keep their weights in 16
# bits between the two products of an attention, which ours do not.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}


class NotHere(Exception):
    """Why an implementation, or a whole case, is left out on this machine."""


@dataclass(frozen=True)
class Case:
    """One op at one size. ``sizes`` holds its axes by name, in a fixed order."""

    op: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        return f"{self.op} " + " ".join(f"{axis}={size}" for axis, size in self.sizes)


@dataclass
class Prepared:
    """A case with its inputs in memory.

    calls: name -> a call to be timed; ours are named by their backend alone.
    outputs: name -> what the call gives, in the form of ``wanted``; makes no difference to inputs.
    skipped: name -> why it is not among the calls.
    wanted: tensors, of ``plain``.
    floor: bytes that must be moved.
    reset: puts back what calls change.
    """

    wanted: tuple[Tensor, ...]
    floor: int
    ours: set[str] = field(default_factory=set)
    calls: dict[str, Callable[[], Any]] = field(default_factory=dict)
    outputs: dict[str, Callable[[], tuple[Tensor, ...]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    reset: Callable[[], None] = lambda: None

    def peer(self, name: str, make: Callable[[], tuple[Callable, Callable]]) -> None:
        """make() -> (call, output of that call in the form of ``wanted``)."""
        try:
            self.calls[name], self.outputs[name] = make()
        except (NotHere, torch.OutOfMemoryError) as reason:
            self.skipped[name] = str(reason).partition("\n")[0]


# Axes of each op; the first size of each is its typical one. Heads are named Hq, Hkv, D together.
HEADS = ((32, 32, 128), (32, 8, 128), (32, 8, 64), (20, 20, 64), (32, 32, 80))
AXES: dict[str, dict[str, tuple]] = {
    "branch_attention": {
        "t": (1024, 4096, 128, 16384),
        "N": (10, 40, 1),
        "Hq Hkv D": HEADS,
        "B": (1, 8, 32),
    },
    "topk_logprobs": {"V": (50272, 128256, 32000, 262144), "B": (1, 8, 64), "k": (10, 40)},
    "select": {"B": (1, 8, 64), "k": (10, 40), "H": (4096, 768)},
    "commit": {"L": (32,), "B": (1, 8, 64), "N": (10, 40), "Hkv D": ((8, 128), (32, 128))},
    "select_commit": {
        "L": (32,),
        "B": (1, 8, 64),
        "N": (10, 40),
        "H": (4096,),
        "Hkv D": ((8, 128), (32, 128)),
    },
}
# For rehearsals: the same program at sizes of no interest.
TOY_AXES: dict[str, dict[str, tuple]] = {
    "branch_attention": {"t": (33, 5), "N": (3, 1), "Hq Hkv D": ((4, 2, 16),), "B": (1, 2)},
    "topk_logprobs": {"V": (997,), "B": (1, 2), "k": (10,)},
    "select": {"B": (2,), "k": (10,), "H": (48,)},
    "commit": {"L": (2,), "B": (2,), "N": (3,), "Hkv D": ((2, 16),)},
    "select_commit": {"L": (2,), "B": (2,), "N": (3,), "H": (48,), "Hkv D": ((2, 16),)},
}


def cases(toy: bool = False) -> list[Case]:
    """All cases, the most telling first: by the number of axes on which a case is not the typical
    one, the ops in turn among equals."""
    found = []
    for op, axes in (TOY_AXES if toy else AXES).items():
        if op not in SCHEMAS:
            continue
        for at in product(*(range(len(sizes)) for sizes in axes.values())):
            pairs: list[tuple[str, int]] = []
            for (names, sizes), i in zip(axes.items(), at, strict=True):
                size = sizes[i] if isinstance(sizes[i], tuple) else (sizes[i],)
                pairs += zip(names.split(), size, strict=True)
            found.append((sum(i > 0 for i in at), sum(at), Case(op, tuple(pairs))))
    return [case for *_, case in sorted(found, key=lambda row: row[:2])]


def prepare(case: Case, device: torch.device) -> Prepared:
    """Raises NotHere where the case does not fit into memory."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = dict(case.sizes)
    make = {
        "topk_logprobs": _topk,
        "branch_attention": _attention,
        "select": _select,
        "commit": _commit,
        "select_commit": _select_commit,
    }[case.op]
    with torch.inference_mode():
        return make(device, dtype, **sizes)


def agree(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float | None:
    """None where the tensors agree as far as rounding allows, or the largest difference."""
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if not b.is_floating_point():
            if not torch.equal(a, b):
                return torch.inf
            continue
        tolerance = TOLERANCE[b.dtype]
        # Over long prefixes outputs are small, and so is what an absolute error may be.
        size = min(1.0, b.float().square().mean().sqrt().nan_to_num(1.0).item())
        if not torch.allclose(a.to(b.dtype), b, atol=tolerance * size, rtol=tolerance):
            worst = max(worst, (a.float() - b.float()).abs().nan_to_num(torch.inf).max().item())
    return worst or None


def _room(size: int, device: torch.device, what: str) -> None:
    """Raises NotHere where ``size`` bytes are more than half of what is free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        with open("/proc/meminfo") as lines:
            line = next(line for line in lines if line.startswith("MemAvailable"))
        free = int(line.split()[1]) * 1024
    if size > free // 2:
        raise NotHere(f"{what} takes {size / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free")


def _backends(op: str, device: torch.device) -> Iterator[tuple[str, Callable]]:
    yield from TABLE[device.type][op].items()


def _randn(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


# ---- topk_logprobs -------------------------------------------------------------------------------


def _topk(device: torch.device, dtype: torch.dtype, *, V: int, B: int, k: int) -> Prepared:
    # Distinct logits, so that torch.topk, which promises nothing of ties, must find the same ids.
    # In 16 bits that is not possible for a whole vocabulary, but it is for its top.
    logits = _randn(B, V, device=device).clamp(max=3.0)
    top = 4 + torch.arange(k + 1, device=device) / 4
    for row in logits:
        row[torch.randperm(V, device=device)[: k + 1]] = top
    logits = logits.to(dtype)
    prepared = Prepared(
        wanted=plain.topk_logprobs(logits, k), floor=B * V * dtype.itemsize + B * k * 12
    )
    for backend, implementation in _backends("topk_logprobs", device):
        _ours(prepared, backend, lambda f=implementation: f(logits, k))

    def composed() -> tuple[Tensor, Tensor]:
        values, ids = torch.topk(logits, k)
        return values.float() - torch.logsumexp(logits.float(), dim=1, keepdim=True), ids

    prepared.peer("torch.topk + logsumexp", lambda: (composed, composed))
    prepared.peer("torch.topk (no normaliser)", lambda: (lambda: torch.topk(logits, k), composed))
    return prepared


def _ours(prepared: Prepared, backend: str, call: Callable[[], Any]) -> None:
    """One of our implementations whose result is its output."""

    def output() -> tuple[Tensor, ...]:
        out = call()
        return out if isinstance(out, tuple) else (out,)

    prepared.ours.add(backend)
    prepared.calls[backend], prepared.outputs[backend] = call, output


# ---- branch_attention ----------------------------------------------------------------------------


def _attention(
    device: torch.device,
    dtype: torch.dtype,
    *,
    t: int,
    N: int,
    Hq: int,
    Hkv: int,
    D: int,
    B: int,
) -> Prepared:
    prefix = 2 * B * t * Hkv * D * dtype.itemsize
    _room(2 * prefix, device, "the prefix, in pages for us and in one piece for the peers,")
    P = -(-t // PAGE_SIZE)
    table = torch.randperm(B * P, device=device).view(B, P).int()
    pages = [_randn(B * P, PAGE_SIZE, Hkv, D, device=device, dtype=dtype) for _ in range(2)]
    lengths = torch.full((B,), t, dtype=torch.int32, device=device)
    q = _randn(B, N, Hq, D, device=device, dtype=dtype)
    tail = [_randn(B, N, Hkv, D, device=device, dtype=dtype) for _ in range(2)]
    mask = torch.eye(N, dtype=torch.bool, device=device)
    arguments = (q, *tail, *pages, table, lengths, mask, D**-0.5, 0, 0.0, None)
    # One sequence at a time: the plain implementation holds a prefix in float32, and its scores.
    wanted = [
        plain.branch_attention(
            *(x[b : b + 1] for x in (q, *tail)),
            *pages,
            *(x[b : b + 1] for x in (table, lengths)),
            *arguments[7:],
        )
        for b in range(B)
    ]
    prepared = Prepared(
        wanted=(torch.cat(wanted),),
        floor=prefix + 2 * B * N * (Hkv + Hq) * D * dtype.itemsize,
    )
    for backend, implementation in _backends("branch_attention", device):
        _ours(prepared, backend, lambda f=implementation: f(*arguments))

    k, v = (x[table.long()].view(B, P * PAGE_SIZE, Hkv, D)[:, :t] for x in pages)
    copied = 2 * B * N * (t + 1) * Hkv * D * dtype.itemsize

    def copies() -> list[Tensor]:
        """[B * N, t + 1, Hkv, D]: the prefix once for every branch, and the branch behind it."""
        _room(copied, device, "a copy of the cache for every branch")
        return [
            torch.cat([x[:, None].expand(B, N, t, Hkv, D), y[:, :, None]], dim=2).flatten(0, 1)
            for x, y in ((k, tail[0]), (v, tail[1]))
        ]

    def sdpa_copied() -> tuple[Callable, Callable]:
        rows = q.flatten(0, 1)[:, :, None]  # [B * N, Hq, 1, D]
        keys, values = (x.transpose(1, 2).contiguous() for x in copies())

        def call() -> Tensor:
            return scaled_dot_product_attention(rows, keys, values, enable_gqa=Hq != Hkv)

        return call, lambda: (call().view(B, N, Hq, D),)

    G = Hq // Hkv
    turned = q.transpose(1, 2).contiguous()

    def joined() -> list[Tensor]:
        pairs = ((k, tail[0]), (v, tail[1]))
        return [torch.cat(pair, dim=1).transpose(1, 2).contiguous() for pair in pairs]

    def sdpa_masked() -> tuple[Callable, Callable]:
        # The heads of a group are rows: with enable_gqa a mask would rule out the fast kernels.
        keys, values = joined()
        rows = q.view(B, N, Hkv, G, D).permute(0, 2, 1, 3, 4).reshape(B, Hkv, N * G, D)
        seen = torch.cat([torch.ones(N, t, dtype=torch.bool, device=device), mask], dim=1)
        seen = seen.repeat_interleave(G, dim=0)

        def call() -> Tensor:
            return scaled_dot_product_attention(rows, keys, values, attn_mask=seen)

        def output() -> tuple[Tensor]:
            out = call().view(B, Hkv, N, G, D).permute(0, 2, 1, 3, 4)
            return (out.reshape(B, N, Hq, D),)

        return call, output

    def flex() -> tuple[Callable, Callable]:
        if device.type != "cuda":
            raise NotHere("compiled on CUDA only")
        if (N, Hq, Hkv, D, B) != (10, *HEADS[0], 1):
            raise NotHere("compiling it takes longer than all else; only at N 10, B 1, first heads")
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        keys, values = joined()
        block_mask = create_block_mask(
            lambda b, h, row, key: (key < t) | (key - t == row), None, None, N, t + N, device
        )
        # Every shape is compiled anew; past a limit of them fullgraph fails, and does not run
        # eagerly.
        torch.compiler.reset()
        compiled = torch.compile(flex_attention, fullgraph=True)

        def call() -> Tensor:
            return compiled(turned, keys, values, block_mask=block_mask, enable_gqa=Hq != Hkv)

        return call, lambda: (call().transpose(1, 2),)

    def flash() -> tuple[Callable, Callable]:
        if device.type != "cuda" or find_spec("flash_attn") is None:
            raise NotHere("flash-attn is not installed")
        from flash_attn import flash_attn_with_kvcache

        rows, (keys, values) = q.flatten(0, 1)[:, None], copies()

        def call() -> Tensor:
            return flash_attn_with_kvcache(rows, keys, values, cache_seqlens=t + 1)

        return call, lambda: (call().view(B, N, Hq, D),)

    prepared.peer("SDPA, cache copied N times", sdpa_copied)
    prepared.peer("SDPA, mask over one prefix", sdpa_masked)
    prepared.peer("FlexAttention, compiled", flex)
    prepared.peer("flash-attn, cache copied N times", flash)
    return prepared


# ---- select, commit, select_commit ---------------------------------------------------------------


def _select_inputs(device: torch.device, dtype: torch.dtype, B: int, k: int, H: int) -> tuple:
    return (
        _randn(B, k, H, device=device, dtype=dtype),
        _randn(H, device=device, dtype=dtype) / H**0.5,
        None,
        -_randn(B, k, device=device).abs().sort(dim=1).values,
        torch.full((B,), 1.5, device=device),
        torch.ones(B, device=device),
        torch.zeros(B, k, device=device),
    )


def _composed_select(arguments: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """What one writes in torch: no check of anything."""
    hidden, weight, _, logprobs, w, temperature, noise = arguments
    rewards = hidden.float() @ weight.float()
    scores = logprobs + w[:, None] * rewards
    branch = (scores / temperature[:, None] + noise).argmax(dim=1, keepdim=True)
    return branch[:, 0], rewards.gather(1, branch)[:, 0], scores.gather(1, branch)[:, 0]


def _select(device: torch.device, dtype: torch.dtype, *, B: int, k: int, H: int) -> Prepared:
    arguments = _select_inputs(device, dtype, B, k, H)
    prepared = Prepared(
        wanted=plain.select(*arguments), floor=(B * k + 1) * H * dtype.itemsize + 8 * B * k
    )
    for backend, implementation in _backends("select", device):
        _ours(prepared, backend, lambda f=implementation: f(*arguments))

    def composed() -> tuple[Tensor, ...]:
        return _composed_select(arguments)

    prepared.peer("torch composition", lambda: (composed, composed))
    return prepared


STEPS = 112  # that pages must hold: calls of one implementation between two resets


def _commit_inputs(
    device: torch.device, dtype: torch.dtype, L: int, B: int, N: int, Hkv: int, D: int
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """tail, pages, table, lengths."""
    P = STEPS // PAGE_SIZE + 1
    row = L * Hkv * D * dtype.itemsize
    _room(2 * row * (3 * B * P * PAGE_SIZE + B * N), device, "it")
    tail = [_randn(L, B, N, Hkv, D, device=device, dtype=dtype) for _ in range(2)]
    shape = (L, B * P, PAGE_SIZE, Hkv, D)
    pages = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)]
    table = torch.randperm(B * P, device=device).view(B, P).int()
    lengths = torch.arange(B, device=device, dtype=torch.int32) % PAGE_SIZE
    return tail, pages, table, lengths


def _writes(
    prepared: Prepared,
    pages: list[Tensor],
    lengths: Tensor,
    candidates: dict[str, Callable[[], Any]],
    peers: set[str],
    plainly: Callable[[], Any],
) -> Prepared:
    """Calls that write pages: they are compared by their results and by what they wrote."""
    at = lengths.clone()

    def reset() -> None:
        lengths.copy_(at)

    def output(call: Callable[[], Any]) -> tuple[Tensor, ...]:
        for x in pages:
            x.zero_()
        reset()
        out = call()
        written = [x.clone() for x in (*pages, lengths)]
        reset()
        return (*(out or ()), *written)

    prepared.reset = reset
    prepared.wanted = output(plainly)
    prepared.ours = candidates.keys() - peers
    for name, call in candidates.items():
        prepared.calls[name] = call
        prepared.outputs[name] = lambda call=call: output(call)
    return prepared


def _composed_commit(
    tail: list[Tensor], branch: Tensor, pages: list[Tensor], table: Tensor, lengths: Tensor
) -> None:
    each = torch.arange(len(branch), device=branch.device)
    page = table[each, lengths // PAGE_SIZE]
    for rows, target in zip(tail, pages, strict=True):
        target[:, page, lengths % PAGE_SIZE] = rows[:, each, branch]
    lengths += 1


def _commit(
    device: torch.device,
    dtype: torch.dtype,
    *,
    L: int,
    B: int,
    N: int,
    Hkv: int,
    D: int,
) -> Prepared:
    tail, pages, table, lengths = _commit_inputs(device, dtype, L, B, N, Hkv, D)
    branch = torch.arange(B, device=device) % N
    arguments = (*tail, branch, *pages, table, lengths)
    candidates: dict[str, Callable[[], Any]] = {
        backend: lambda f=f: f(*arguments) for backend, f in _backends("commit", device)
    }
    candidates["torch composition"] = lambda: _composed_commit(tail, branch, pages, table, lengths)
    prepared = Prepared(wanted=(), floor=4 * L * B * Hkv * D * dtype.itemsize)
    return _writes(
        prepared,
        pages,
        lengths,
        candidates,
        {"torch composition"},
        lambda: plain.commit(*arguments),
    )


def _select_commit(
    device: torch.device,
    dtype: torch.dtype,
    *,
    L: int,
    B: int,
    N: int,
    H: int,
    Hkv: int,
    D: int,
) -> Prepared:
    tail, pages, table, lengths = _commit_inputs(device, dtype, L, B, N, Hkv, D)
    chosen = _select_inputs(device, torch.float32, B, N, H)
    arguments = (*chosen, *tail, *pages, table, lengths)
    candidates: dict[str, Callable[[], Any]] = {
        backend: lambda f=f: f(*arguments) for backend, f in _backends("select_commit", device)
    }

    def composed() -> tuple[Tensor, Tensor, Tensor]:
        out = _composed_select(chosen)
        _composed_commit(tail, out[0], pages, table, lengths)
        return out

    candidates["torch composition"] = composed

    def plainly() -> tuple[Tensor, Tensor, Tensor]:
        out = plain.select(*chosen)
        plain.commit(*tail, out[0], *pages, table, lengths)
        return out

    moved = 4 * L * B * Hkv * D * dtype.itemsize + (B * N + 1) * H * 4 + 8 * B * N
    return _writes(
        Prepared(wanted=(), floor=moved),
        pages,
        lengths,
        candidates,
        {"torch composition"},
        plainly,
    )
