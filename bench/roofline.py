"""The least that a step can cost: its bytes, its flops, and the time they take on a device.

Bytes of a step of greedy decoding, B sequences behind prefixes of t tokens:

    weights that are read whole + the rows of embedding tables that are looked up
    + B * t * (keys and values of one token)      the prefix, read once
    + B * (keys and values of one token)          the new row, written

ARGS adds the same of the reward model: its prefixes are read once for all k candidates, k rows of
its tables are looked up, and one row is written. An embedding table counts whole only where it is
the head of the language model too; a classifier has no such head. Activations and the k - 1 rows
that lose are not counted: they fit in caches.

Flops are 2 per weight of a matrix and row, and 4 * t * Hq * D per row and layer for the attention.
The floor is max(bytes / bandwidth, flops / peak) over the whole step, both models together, because
one model's arithmetic may run under the other's reading. Computed, never measured; only the figures
of "this device" are measured.

    python -m args_fast.bench.roofline --lm opt-2.7b --rm opt-350m --k 10 --prompt 1900 --batch 1
"""

import argparse
import functools
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from args_fast.bench import models
from args_fast.bench.timing import copy_bandwidth, device_name, measure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """bandwidth in bytes/s; peak flops/s of dense matrix products by dtype; where both are from."""

    name: str
    bandwidth: float
    peak: dict[str, float]
    source: str


# Dense rates: the data sheets print the double, "with sparsity", for 16 bits. float32 is without
# TF32, as torch multiplies unless told otherwise.
DEVICES = {
    "a100-80gb": Device(
        "A100-80GB SXM",
        2.039e12,
        {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12},
        "NVIDIA A100 Tensor Core GPU datasheet, A100 80GB SXM",
    ),
    "h100": Device(
        "H100 SXM",
        3.35e12,
        {"bfloat16": 989.5e12, "float16": 989.5e12, "float32": 67e12},
        "NVIDIA H100 Tensor Core GPU datasheet, H100 SXM",
    ),
    "h200": Device(
        "H200 SXM",
        4.8e12,
        {"bfloat16": 989.5e12, "float16": 989.5e12, "float32": 67e12},
        "NVIDIA H200 Tensor Core GPU datasheet, H200 SXM",
    ),
}


@dataclass(frozen=True)
class ModelCost:
    """What one forward pass of a model touches, in numbers of values: independent of the dtype.

    Attributes:
        whole: weights read whole, whatever the number of rows.
        matrices: weights of the matrix products: 2 flops each per row.
        row: values looked up in embedding tables, per row.
        cached: keys and values of one token, over all layers.
        attention: flops per row and token of prefix, over all layers.
        parameters: all weights.
    """

    whole: int
    matrices: int
    row: int
    cached: int
    attention: int
    parameters: int


@functools.cache
def model_cost(name: str, head: bool) -> ModelCost:
    """Of a language model (``head``), or of a classifier, by counting its weights."""
    build = models.language_model if head else models.reward_model
    return cost_of(build(name, "meta"))


def cost_of(model: PreTrainedModel) -> ModelCost:
    """Count a dense decoder's weights; it may lie on the meta device."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    products = {id(module.weight) for module in linear}
    looked_up = {id(table.weight) for table in tables}
    weights = list(model.parameters())  # each once, tied ones too
    whole = sum(p.numel() for p in weights if id(p) not in looked_up - products)
    at = model.config
    heads = at.num_attention_heads
    kv_heads = getattr(at, "num_key_value_heads", None) or heads
    head_size = getattr(at, "head_dim", None) or at.hidden_size // heads
    return ModelCost(
        whole=whole,
        matrices=sum(module.weight.numel() for module in linear),
        row=sum(table.embedding_dim for table in tables),
        cached=2 * at.num_hidden_layers * kv_heads * head_size,
        attention=4 * at.num_hidden_layers * heads * head_size,
        parameters=sum(p.numel() for p in weights),
    )


@dataclass(frozen=True)
class Work:
    """Bytes and flops of something."""

    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, device: Device, dtype: str) -> float:
        """The least time it takes: the slower of moving and computing."""
        return max(self.bytes / device.bandwidth, self.flops / device.peak[dtype])


def forward(cost: ModelCost, *, rows: int, t: int, batch: int, dtype: str) -> Work:
    """``rows`` rows behind each of ``batch`` prefixes of t tokens, of which one is kept."""
    size = DTYPES[dtype].itemsize
    values = cost.whole + batch * rows * cost.row + batch * (t + 1) * cost.cached
    flops = batch * rows * (2 * cost.matrices + t * cost.attention)
    return Work(values * size, flops)


@dataclass(frozen=True)
class Floor:
    """The step's two halves, on one device."""

    lm: Work
    rm: Work
    device: Device
    dtype: str

    @property
    def greedy_seconds(self) -> float:
        return self.lm.seconds(self.device, self.dtype)

    @property
    def step_seconds(self) -> float:
        return (self.lm + self.rm).seconds(self.device, self.dtype)

    @property
    def slowdown(self) -> float:
        return self.step_seconds / self.greedy_seconds


def floor(lm: str, rm: str, *, k: int, t: int, batch: int, dtype: str, device: Device) -> Floor:
    """The floor of one step of ARGS, and of greedy decoding, at prefixes of t tokens. k = 1 does
    without the reward model."""
    lm_work = forward(model_cost(lm, True), rows=1, t=t, batch=batch, dtype=dtype)
    rm_work = forward(model_cost(rm, False), rows=k, t=t, batch=batch, dtype=dtype)
    return Floor(lm_work, rm_work if k > 1 else Work(0, 0), device, dtype)


def cache_bytes(rm: str, *, tokens: int, dtype: str) -> int:
    """Keys and values that the reward model keeps for one sequence of this many tokens."""
    return model_cost(rm, False).cached * tokens * DTYPES[dtype].itemsize


def this_device(device: torch.device, dtype: str) -> Device:
    """Bandwidth and peak as measured here and now."""
    return Device(
        device_name(device),
        copy_bandwidth(device),
        {dtype: matmul_peak(device, dtype)},
        "measured: the best copy (bytes read and written) and the best square matrix product",
    )


def matmul_peak(device: torch.device, dtype: str) -> float:
    """Flops per second of a large square matrix product."""
    N = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(N, N, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * N**3 / measure(lambda: torch.mm(a, b, out=out), device).minimum


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m args_fast.bench.roofline",
        description="The floor of a step, from data sheets and from what is measured here.",
    )
    parser.add_argument("--lm", default="opt-2.7b", choices=models.CONFIGS, metavar="NAME")
    parser.add_argument("--rm", default="opt-350m", choices=models.CONFIGS, metavar="NAME")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of prefix, t")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--here", action="store_true", help="measure this device too")
    at = parser.parse_args(arguments)
    logging.set_verbosity_error()
    devices = list(DEVICES.values())
    if at.here:
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        devices.append(this_device(here, at.dtype))

    def of(device: Device) -> Floor:
        return floor(
            at.lm, at.rm, k=at.k, t=at.prompt, batch=at.batch, dtype=at.dtype, device=device
        )

    first = of(devices[0])
    print(
        f"{at.lm} + {at.rm}, k = {at.k}, prefix {at.prompt}, batch {at.batch}, {at.dtype}: per step"
    )
    for name, work in (("language model", first.lm), ("reward model", first.rm)):
        print(f"  {name:15} {work.bytes / 1e9:9.3f} GB  {work.flops / 1e9:11.2f} GFLOP")
    print(f"{'':27} {'greedy ms':>10} {'ARGS ms':>10} {'slowdown':>9}")
    for device in devices:
        f = of(device)
        print(
            f"  {device.name[:25]:25} {f.greedy_seconds * 1e3:10.3f} {f.step_seconds * 1e3:10.3f} "
            f"{f.slowdown:9.3f}   {device.bandwidth / 1e9:.0f} GB/s, "
            f"{device.peak[at.dtype] / 1e12:.4g} TFLOP/s ({device.source})"
        )


if __name__ == "__main__":
    main()
