"""How the products of the Triton layers are best cut on this GPU: TUNING of layer_pass.py.

    python scripts/layer_tuning.py      # OPT-2.7B and OPT-350M, two minutes with 16 cores
    python scripts/layer_tuning.py --shape llama-7b --workers 12

Every cut is timed in a CUDA graph of many launches, each with weights of its own, so that no cache
holds them. A cut is rows of W per tile, K per block, warps, stages, and in how many splits K goes
("-": as the engine's rule says). Kernels are compiled beforehand by several processes at once. The
table goes to standard output; with --out also all figures, as JSON.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from args_fast.bench import models
from args_fast.bench.timing import measure
from args_fast.kernels import layer_pass
from args_fast.kernels.decoder_layers import COUNTERS, decoder_layers
from args_fast.kernels.device import machine, tuned

ROWS = 10
STREAMED = 400e6  # bytes of weights in one graph: many times what the L2 holds
WIDE = [
    *((16, 256, 4, 4), (16, 512, 4, 3), (32, 128, 4, 3), (32, 128, 4, 5), (32, 256, 8, 3)),
    *((64, 64, 4, 6), (64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 8, 4), (128, 128, 8, 3)),
]
DEEP = [(64, 4, 3), (64, 4, 4), (64, 8, 4), (128, 4, 2), (128, 8, 3)]
RESIDENT = (2, 3, 4)
SPLITS = {"project": (1, 2, 3), "feed": (1, 2, 3), "o": (3, 6, 8), "down": (3, 4, 6, 8)}


class Sizes(NamedTuple):
    """Of a model's layers: of what, how many, and whether the MLP has a gate."""

    H: int
    F: int
    Hq: int
    Hkv: int
    D: int
    gated: bool
    layers: int

    @property
    def padded(self) -> int:
        """D as the kernels pad it."""
        return max(16, triton.next_power_of_2(self.D))


def sizes(shape: str) -> Sizes:
    """Those of a model in ``bench/models.py``."""
    config: Any = models.config(shape)
    H, Hq = config.hidden_size, config.num_attention_heads
    gated = not hasattr(config, "ffn_dim")
    F = config.intermediate_size if gated else config.ffn_dim
    Hkv = getattr(config, "num_key_value_heads", Hq)
    D = getattr(config, "head_dim", None) or H // Hq
    return Sizes(H, F, Hq, Hkv, D, gated, config.num_hidden_layers)


class Cut(NamedTuple):
    """One way of cutting one product of one model."""

    shape: str
    kind: str  # project, feed, o or down
    tile: tuple[int, ...] | None  # as in TUNING; None: what is there
    splits: int | None  # None: the engine's rule


def cuts(shape: str, few: bool) -> list[Cut]:
    """What is tried of a shape, the engine's own cut first."""
    padded = sizes(shape).padded
    found = []
    for kind, splits in SPLITS.items():
        tiles = [(padded, *rest) for rest in DEEP] if kind == "project" else WIDE
        found.append(Cut(shape, kind, None, None))
        for tile in tiles[:1] if few else tiles:
            found += [Cut(shape, kind, (*tile, resident), None) for resident in RESIDENT]
            found += [Cut(shape, kind, (*tile, 1), count) for count in splits]
    return found


def weights(shape: str, device: torch.device) -> dict[str, Any]:
    """A layer's random weights."""
    H, F, Hq, Hkv, D, gated, _ = sizes(shape)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) * 0.02

    layer: dict[str, Any] = dict.fromkeys(
        ("q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias")
    )
    layer |= dict.fromkeys(("q_norm", "k_norm", "gate"))
    layer |= {"q": matrix(Hq * D, H), "k": matrix(Hkv * D, H), "v": matrix(Hkv * D, H)}
    layer |= {"o": matrix(H, Hq * D), "up": matrix(F, H), "down": matrix(H, F)}
    if gated:
        layer["gate"] = matrix(F, H)
    return layer


OF_KIND = {"project": ("q", "k", "v"), "feed": ("gate", "up"), "o": ("o",), "down": ("down",)}


def read_bytes(layer: dict[str, Any], kind: str) -> int:
    return sum(layer[name].nbytes for name in OF_KIND[kind] if layer[name] is not None)


def changed(device: torch.device, **changes: Any) -> dict[tuple[int, int], dict[str, Any]]:
    """TUNING with other entries: "ahead", or {key: tile} of a product."""
    capability, _ = machine(device)
    known = tuned(layer_pass.TUNING, capability)
    made = {
        name: dict(value) if isinstance(value, dict) else value for name, value in known.items()
    }
    for name, value in changes.items():
        made[name] = made[name] | value if isinstance(value, dict) else value
    return {capability: made}


def launcher(cut: Cut, layers: list[dict[str, Any]], device: torch.device) -> Callable[[], None]:
    """What launches the product once for each of the layers."""
    of = sizes(cut.shape)
    changes = {}
    if cut.tile is not None:
        group = "add" if cut.kind in ("o", "down") else cut.kind
        changes[group] = {(2, of.padded) if cut.kind == "project" else 2: cut.tile}
    tuning, divide = layer_pass.TUNING, layer_pass.divide
    layer_pass.TUNING = changed(device, **changes)
    if cut.splits is not None:
        layer_pass.divide = lambda *_: cut.splits
    try:
        hidden = torch.randn(1, ROWS, of.H, device=device, dtype=torch.bfloat16)
        tail = torch.zeros(1, ROWS, of.Hkv, of.D, device=device, dtype=torch.bfloat16)
        counters = torch.zeros(1 << 16, dtype=torch.int32, device=device)
        run = layer_pass.LayerPass(hidden, layers[0], tail[None], counters, "layer", 1e-5, None)
    finally:
        layer_pass.TUNING, layer_pass.divide = tuning, divide
    run.begin(hidden, None, run.stats[0])
    norm = (torch.ones(of.H, device=device, dtype=torch.bfloat16),) * 2
    none = (None, None)
    run.mixed.normal_()
    run.inner.normal_()

    def launch() -> None:
        for layer in layers:
            if cut.kind == "project":
                run.project(layer, norm, run.stats[0], tail, tail)
            elif cut.kind == "feed":
                run.feed(layer, norm, run.stats[0], "relu")
            elif cut.kind == "o":
                run.add(run.mixed, layer["o"], None, run.of_o, none, None, run.stats[1])
            else:
                run.add(run.inner, layer["down"], None, run.of_down, none, None, run.stats[1])

    return launch


def compile_all(cuts: list[Cut], device: str) -> int:
    """Launch each once, which compiles it into Triton's cache on disk; how many failed."""
    failed = 0
    kept: dict[str, Any] = {}
    for cut in cuts:
        layer = kept.setdefault(cut.shape, weights(cut.shape, torch.device(device)))
        try:
            launcher(cut, [layer], torch.device(device))()
        except Exception:  # more shared memory than there is, say: it fails again when it is timed
            failed += 1
    return failed


def seconds(launch: Callable[[], None], device: torch.device) -> float:
    """Of one replay of a graph of it; on the CPU, where nothing is timed, it runs once."""
    launch()
    if device.type == "cpu":
        return 1.0
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return measure(graph.replay, device, repeats=6)["median"]


def products(
    shape: str, tried: list[Cut], device: torch.device, figures: list[dict[str, Any]]
) -> dict[str, Any]:
    """Time each product by itself and print the best cuts; returns those by the engine's rule, as
    changes of TUNING."""
    best: dict[str, dict[Any, float]] = {}
    for kind in SPLITS:
        one = weights(shape, device)
        size = read_bytes(one, kind)
        count = 1 if device.type == "cpu" else min(400, int(STREAMED / size) + 1)
        names = [name for name in OF_KIND[kind] if one[name] is not None]
        layers = [one | {name: one[name].clone() for name in names} for _ in range(count)]
        rows = []
        for cut in (cut for cut in tried if cut.kind == kind):
            try:
                took = seconds(launcher(cut, layers, device), device) / count
            except Exception as error:
                figures.append(cut._asdict() | {"error": str(error)[:200]})
                continue
            rows.append((took, cut))
            figures.append(cut._asdict() | {"us": took * 1e6, "gb_s": size / took / 1e9})
            if cut.tile is not None and cut.splits is None:
                group = best.setdefault("add" if kind in ("o", "down") else kind, {})
                group[cut.tile] = group.get(cut.tile, 0.0) + took
        rows.sort(key=lambda row: row[0])
        own = next((took for took, cut in rows if cut.tile is None), float("nan"))
        print(f"\n{shape} {kind}: {size / 1e6:.1f} MB, TUNING {own * 1e6:.2f} us")
        for took, cut in rows[:8]:
            figure = f"{took * 1e6:7.2f} us {size / took / 1e9:5.0f} GB/s"
            print(f"  {figure}  {cut.tile} splits {cut.splits or '-'}", flush=True)
    keys = {"project": (2, sizes(shape).padded), "feed": 2, "add": 2}
    return {kind: {keys[kind]: min(best[kind], key=best[kind].__getitem__)} for kind in best}


class Whole:
    """All layers of a model after a prefix, as they are in a step."""

    def __init__(self, shape: str, device: torch.device, count: int) -> None:
        of = sizes(shape)
        new = {"device": device, "dtype": torch.bfloat16}
        self.device, self.H, self.layers = (
            device,
            of.H,
            [weights(shape, device) for _ in range(count)],
        )
        for layer in self.layers:
            norms = ("norm1", "norm1_bias", "norm2", "norm2_bias")
            layer |= dict.fromkeys(norms, torch.ones(of.H, **new))
        self.pages = [torch.randn(count, 140, 16, of.Hkv, of.D, **new) for _ in range(2)]
        self.tail = (count, 1, ROWS, of.Hkv, of.D)
        self.read = sum(read_bytes(layer, kind) for layer in self.layers for kind in SPLITS)

    def seconds(self, rows: int, prefix: int) -> float:
        device = self.device
        hidden = torch.randn(1, rows, self.H, device=device, dtype=torch.bfloat16)
        count, _, _, Hkv, D = self.tail
        k, v = (
            torch.zeros(count, 1, rows, Hkv, D, device=device, dtype=torch.bfloat16) for _ in "kv"
        )
        table = torch.arange(-(-(prefix + 64) // 16), dtype=torch.int32, device=device)[None]
        lengths = torch.tensor([prefix], dtype=torch.int32, device=device)
        mask = torch.eye(rows, dtype=torch.bool, device=device)
        counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)

        def launch() -> None:
            decoder_layers(
                hidden,
                self.layers,
                k,
                v,
                *self.pages,
                table,
                lengths,
                mask,
                None,
                None,
                [D**-0.5] * count,
                [0] * count,
                "layer",
                1e-5,
                "relu",
                True,
                counters=counters,
            )

        return seconds(launch, device)


CASES = ((1, 160), (ROWS, 160), (1, 1900))  # rows, and tokens before them


class Variant(NamedTuple):
    """TUNING with some of it changed, PROMPT, which says how long a chunk of the attention is, and
    the attention's blocks of heads padded to 128 for tiles of 16 rows."""

    name: str
    changes: dict[str, Any]
    prompt: int = layer_pass.PROMPT
    block: tuple[int, int, int] | None = None


def variants(best: dict[str, Any]) -> list[Variant]:
    tried = [Variant("TUNING", {}), Variant("best cuts", best)]
    tried += [Variant(f"ahead {n}", best | {"ahead": n}) for n in (1, 4)]
    tried += [Variant(f"chunks for {n} tokens", best, n) for n in (1024, 4096)]
    blocks = ((64, 4, 3), (32, 4, 4), (128, 8, 2))
    return tried + [Variant(f"attention {x}", best, block=x) for x in blocks]


def passes(shape: str, device: torch.device, count: int, tried: list[Variant]) -> None:
    """Prints the milliseconds of a pass through so many layers with each variant."""
    model = Whole(shape, device, count)
    known = layer_pass.TUNING, layer_pass.PROMPT
    of_heads = tuned(layer_pass.ATTENTION, machine(device)[0])["blocks"][2, 128]
    block = of_heads[16]
    for name, changes, prompt, changed_block in tried:
        layer_pass.TUNING, layer_pass.PROMPT = changed(device, **changes), prompt
        of_heads[16] = changed_block or block
        try:
            took = [model.seconds(*case) for case in CASES]
        except Exception as error:
            print(f"  {name:24} {str(error)[:90]}", flush=True)
            continue
        finally:
            layer_pass.TUNING, layer_pass.PROMPT = known
            of_heads[16] = block
        words = (
            f"{r} rows after {t}: {x * 1e3:6.3f}" for (r, t), x in zip(CASES, took, strict=True)
        )
        print(
            f"  {name:24} {'   '.join(words)}   {model.read / took[0] / 1e9:5.0f} GB/s", flush=True
        )


def compile_variant(shape: str, device: str, variant: Variant) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        passes(shape, torch.device(device), 1, [variant])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", action="append", choices=models.CONFIGS, metavar="SHAPE", help="may be repeated"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=14, help="processes that compile")
    parser.add_argument("--few", action="store_true", help="one tile of each product: a rehearsal")
    parser.add_argument("--out", type=Path, help="file for all figures, as JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    shapes = options.shape or ["opt-2.7b", "opt-350m"]
    tried = [cut for shape in shapes for cut in cuts(shape, options.few)]
    figures: list[dict[str, Any]] = []
    with ProcessPoolExecutor(max(1, options.workers), get_context("spawn")) as pool:
        if options.workers:
            parts = [tried[i :: options.workers] for i in range(options.workers)]
            failed = sum(pool.map(compile_all, parts, [options.device] * options.workers))
            print(f"{len(tried)} cuts compiled, {failed} failed", file=sys.stderr, flush=True)
        for shape in shapes:
            best = products(shape, [cut for cut in tried if cut.shape == shape], device, figures)
            waiting = variants(best)
            if options.workers:
                rest = len(waiting)
                list(pool.map(compile_variant, [shape] * rest, [options.device] * rest, waiting))
            print(f"\n{shape}, ms of a pass; best cuts: {best}")
            passes(shape, device, sizes(shape).layers, waiting)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
