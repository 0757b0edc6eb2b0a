"""How long a kernel, a forward pass and a step should take on a GPU: a model, not a measurement.

A kernel takes its launch and then the longest of three: its bytes at the bandwidth, behind one
latency; its flops at the peak; its programs, one wave after another. A program waits for the loads
that it cannot do without, issues its instructions and turns its loop. A turn either waits for a
block that was asked for ``ahead`` turns ago (Little's law, for one program) or issues the loop's
instructions, whichever takes longer.

What is known of the kernels comes from bench/launches.py, and of the machines from
bench/roofline.py and bench/resources.py. The rest are the assumptions below. bench/predict.py makes
tables of it.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

from args_fast.bench import models
from args_fast.bench.launches import (
    K,
    attends,
    heads,
    hidden_size,
    key,
    merged,
    pages,
    products,
)
from args_fast.bench.linear_bench import Shape
from args_fast.bench.resources import MACHINES
from args_fast.bench.roofline import Device

LAUNCH = 1.3e-6  # from one kernel of a replayed graph to the next
FAR, NEAR = 0.7e-6, 0.3e-6  # a load from memory, and from L2, while others load too
CYCLES = 4  # between two instructions of a warp
REACHED = 0.9  # of the data sheet's bandwidth, by a kernel with enough under way
CLOCK = {80: 1.41e9, 90: 1.755e9}
ARCH = {"a100-80gb": 80, "h100": 90, "h200": 90}
SIZE = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Launch:
    """One launch of a compiled kernel.

    turns: of its loop, in the program that has most. ahead: turns between asking for a block and
    using it. far, near: loads that wait for one another before and behind the loop, from memory and
    from L2. bytes: from and to memory. floor: bytes that the op cannot do without.
    """

    name: str
    kernel: dict[str, Any]
    programs: int
    turns: int
    ahead: int
    far: int
    near: int
    bytes: float
    floor: float
    flops: float = 0.0

    def slots(self, arch: int) -> int:
        return int(MACHINES[arch].multiprocessors * self.kernel["fit"])

    def waves(self, arch: int) -> int:
        return ceil(self.programs / self.slots(arch))

    def program(self, arch: int) -> float:
        """Seconds of the longest program."""
        resident = min(self.programs, self.slots(arch)) / MACHINES[arch].multiprocessors
        warps = max(1.0, resident * self.kernel["warps"] / 4)  # of one scheduler
        instruction = max(CYCLES, warps) / CLOCK[arch]
        turn = max(FAR / self.ahead, self.kernel["loop"] * instruction) if self.turns else 0.0
        waiting = self.far * FAR + self.near * NEAR
        return waiting + self.kernel["straight"] * instruction + self.turns * turn

    def seconds(self, device: Device, arch: int) -> float:
        moving = FAR + self.bytes / (REACHED * device.bandwidth) if self.bytes else 0.0
        computing = self.flops / device.peak["bfloat16"]
        return LAUNCH + max(moving, computing, self.waves(arch) * self.program(arch))


@dataclass(frozen=True)
class Model:
    """Predictions for one architecture, from the data file."""

    data: dict[str, Any]
    device: Device
    arch: int
    streaming: float | None = None  # share of the bandwidth that products reach; None: by the model
    splits: float = 1.0  # times as many parts of a prefix as the kernel's table asks for; 0: one
    fused: bool = False  # small kernels that follow one another are one
    merged: bool = False  # queries, keys and values are one product

    def kernels(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.data["kernels"][name][str(self.arch)]
        return found

    def attention(self, name: str, rows: int, t: int) -> list[Launch]:
        sized = attends(name, rows, t)
        at = sized.sizes
        main, *merge = self.kernels(sized.key)
        c = main["constants"]
        block = c["BLOCK_N"]
        tiles = ceil(rows * at["G"] / c["BLOCK_M"])
        splits = main["programs"] // (at["Hkv"] * tiles)
        if splits > 1:
            most = ceil(c["PAGE_SIZE"] * pages(t) / block)
            splits = max(2, min(most, int(splits * self.splits))) if self.splits else 1
        prefix = 2 * t * at["Hkv"] * at["D"] * SIZE
        small = 2 * rows * at["Hkv"] * (1 + at["G"]) * at["D"] * SIZE
        flops = 4 * rows * t * at["Hkv"] * at["G"] * at["D"]
        launches = [
            Launch(
                "_attend",
                main,
                splits * at["Hkv"] * tiles,
                turns=ceil(ceil(t / block) / splits),
                ahead=main["stages"] - 1,
                far=1,  # the first block
                near=4,  # the length, the page numbers; the tail's mask, its rows
                bytes=prefix + small,
                floor=prefix + small,
                flops=flops,
            )
        ]
        for kernel in merge if splits > 1 else []:
            launches.append(Launch("_merge", kernel, kernel["programs"], 0, 1, 0, 2, 0, 0))
        return launches

    def linear(self, M: int, N: int, K: int, bias: bool) -> Launch:
        (kernel,) = self.kernels(key("linear", M=M, N=N, K=K, bias=bias))
        c = kernel["constants"]
        splits = c.get("SPLITS", 1)
        turns = ceil(ceil(K / c["BLOCK_K"]) / splits)
        moved = SIZE * (N * K + M * K + M * N + N * bias)
        near = 3 * (splits > 1)  # partial sums stored, the arrival, partial sums read
        stages = c["STAGES"]
        args = (kernel, kernel["programs"], turns, stages - 1, 1, near, moved, moved)
        return Launch(kernel["name"], *args, flops=2 * M * N * K)

    def product(self, launch: Launch) -> float:
        if self.streaming is None:
            return launch.seconds(self.device, self.arch)
        return LAUNCH + FAR + launch.bytes / (self.streaming * self.device.bandwidth)

    def topk(self, V: int) -> list[Launch]:
        """The CUDA C++ one if it was compiled: one launch instead of two."""
        if "topk_logprobs" in self.data["cuda"]:
            kernel = self.data["cuda"]["topk_logprobs"][str(self.arch)]
            chunks = ceil(V / 2048)
            # The logits, which are in L2; a ticket, the winners of the chunks, the normalisers.
            return [Launch("topk (CUDA)", kernel, chunks, 1, 1, 0, 4, 0, 0)]
        scan, choose = self.kernels(key("topk_logprobs", V=V, k=K))
        return [
            Launch("_scan", scan, scan["programs"], 0, 1, 0, 1, 0, 0),
            Launch("_choose", choose, 1, 0, 1, 0, 3, 0, 0),
        ]

    def commit(self, name: str) -> Launch:
        L, at = models.config(name).num_hidden_layers, heads(name)
        (kernel,) = self.kernels(key("commit", L=L, Hkv=at["Hkv"], D=at["D"]))
        moved = 4 * L * at["Hkv"] * at["D"] * SIZE
        # The branch, the length, the page number, the row.
        return Launch("_commit", kernel, kernel["programs"], 0, 1, 0, 4, moved, moved)

    def select_commit(self, name: str) -> list[Launch]:
        H = hidden_size(name)
        if "select_commit" in self.data["cuda"]:
            kernel = self.data["cuda"]["select_commit"][str(self.arch)]
            L, at = models.config(name).num_hidden_layers, heads(name)
            units = 2 * L * at["Hkv"] * at["D"] * SIZE // 16
            moved = 4 * L * at["Hkv"] * at["D"] * SIZE
            blocks = max(1, ceil(units / 1024))
            # The hidden states, the length and the page number beside them, the row, the ticket.
            return [Launch("select_commit (CUDA)", kernel, blocks, 1, 1, 0, 4, moved, moved)]
        (kernel,) = self.kernels(key("select", k=K, H=H))
        return [Launch("_select", kernel, 1, 1, 1, 0, 2, 0, 0), self.commit(name)]

    def seconds(self, launches: list[Launch]) -> float:
        return sum(launch.seconds(self.device, self.arch) for launch in launches)

    # ---- a step --------------------------------------------------------------------------------

    @property
    def small(self) -> float:
        """A kernel of a few thousand elements: a launch, a load from L2, a hundred instructions."""
        return LAUNCH + NEAR + 100 * CYCLES / CLOCK[self.arch]

    def layers(self, name: str, head: bool) -> dict[Shape, int]:
        found = products(name, head)
        if self.merged:
            one = merged(name)
            parts = Shape(one.K, one.K, one.bias)
            found[one] = found[parts] // 4  # the fourth is the output's
            found[parts] = found[one]
        return found

    def forward(self, pair: str, part: str, name: str, rows: int, t: int) -> "Pass":
        counts = self.data["steps"][pair][part]
        layers = self.layers(name, head=part == "lm")
        weights = sum(
            n * self.product(self.linear(rows, s.N, s.K, s.bias)) for s, n in layers.items()
        )
        attention = counts["attention"] * self.seconds(self.attention(name, rows, t))
        small = counts["runs" if self.fused else "small"]
        floor = sum(n * self.linear(rows, s.N, s.K, s.bias).floor for s, n in layers.items())
        floor += counts["attention"] * sum(x.floor for x in self.attention(name, rows, t))
        per_layer = len(self.attention(name, rows, t))
        launches = sum(layers.values()) + counts["attention"] * per_layer + small
        return Pass(weights, attention, small * self.small, launches, floor)


@dataclass(frozen=True)
class Pass:
    """One forward pass: seconds of its products, attention and small kernels; bytes."""

    products: float
    attention: float
    small: float
    launches: int
    bytes: float

    @property
    def seconds(self) -> float:
        return self.products + self.attention + self.small


@dataclass(frozen=True)
class Step:
    """A step of a pair: one model after the other, and with lookahead between two bounds."""

    lm: Pass
    rm: Pass
    lm_ahead: Pass  # the language model over k rows
    lm_ops: float  # topk, and the language model's commit
    rm_ops: float
    rest: float  # the step's own small kernels
    device: Device

    @property
    def greedy(self) -> float:
        return self.lm.seconds + self.lm_ops + self.rest

    @property
    def sequential(self) -> float:
        return self.greedy + self.rm.seconds + self.rm_ops

    @property
    def lookahead(self) -> tuple[float, float]:
        """At best the two passes share nothing but the memory; at worst the reward model's bytes
        come on top of the whole of the language model's pass."""
        ops = self.lm_ops + self.rm_ops + self.rest
        bandwidth = REACHED * self.device.bandwidth
        memory = (self.lm_ahead.bytes + self.rm.bytes) / bandwidth
        best = max(self.lm_ahead.seconds, self.rm.seconds, memory)
        worst = max(self.lm_ahead.seconds + self.rm.bytes / bandwidth, self.rm.seconds)
        return ops + best, ops + worst


def step(model: Model, lm: str, rm: str, t: int) -> Step:
    pair = f"{lm} + {rm}"
    vocabulary = models.config(lm).vocab_size
    commit = model.seconds([model.commit(lm)])
    return Step(
        lm=model.forward(pair, "lm", lm, 1, t),
        rm=model.forward(pair, "rm", rm, K, t),
        lm_ahead=model.forward(pair, "lm", lm, K, t),
        lm_ops=model.seconds(model.topk(vocabulary)) + commit,
        rm_ops=model.seconds(model.select_commit(rm)),
        rest=model.data["steps"][pair]["rest"]["small"] * model.small,
        device=model.device,
    )
