"""The predictions follow from the data, and the data from the code."""

import json
import os
from dataclasses import asdict
from importlib.metadata import version

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter is on: nothing is compiled", allow_module_level=True)

from args_fast.bench import gpu_model, launches, predict
from args_fast.bench.gpu_model import FAR, LAUNCH, Launch, Model, step
from args_fast.bench.resources import MACHINES, Kernel
from args_fast.bench.roofline import DEVICES, Device

DATA = json.loads(predict.DATA.read_text())
AGAIN = "run python -m args_fast.bench.predict --compile"
H100 = Model(DATA, DEVICES["h100"], 90)


def as_found(name):
    return pytest.mark.skipif(
        DATA["versions"][name] != version(name), reason=f"the data are of another {name}"
    )


def test_the_tables_in_the_docs_are_those_of_the_data():
    text = predict.DOCUMENT.read_text()
    assert predict.render(text, DATA) == text, AGAIN
    assert {name for _, name, _ in predict.MARKED.findall(text)} == set(predict.TABLES)


def test_every_number_is_said_to_be_computed():
    text = predict.DOCUMENT.read_text()
    assert "**Nothing on this page was measured on a GPU.**" in text
    for name in predict.TABLES:
        caption = text[: text.index(f"<!-- computed: {name} -->")].rstrip().rsplit("\n\n", 1)[1]
        assert name in ("versions", "assumptions") or "omputed" in caption or "read from" in caption


@as_found("transformers")
@pytest.mark.parametrize("pair", launches.PAIRS, ids=" + ".join)
def test_a_step_launches_what_the_data_say(pair):
    counted = {part: asdict(found) for part, found in launches.count_step(*pair).items()}
    assert counted == DATA["steps"][" + ".join(pair)], AGAIN


@as_found("triton")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "wanted",
    [
        launches.attends("opt-2.7b", 1, 1900),
        launches.attends("opt-350m", 10, 128),
        *[x for x in launches.wanted() if x.key == "linear M=10 N=1024 K=1024 bias=True"][:1],
        *[x for x in launches.wanted() if x.key == "select k=10 H=4096"],
    ],
    ids=lambda sized: sized.key,
)
def test_kernels_compile_to_what_the_data_say(wanted):
    found = json.loads(json.dumps(launches.compiled(wanted)))
    assert found == DATA["kernels"][wanted.key], AGAIN


def test_every_kernel_of_the_headline_shapes_is_among_the_data():
    assert {sized.key for sized in launches.wanted()} == set(DATA["kernels"]), AGAIN


def test_products_are_counted_alike_in_a_step_and_in_the_models():
    for lm, rm in launches.PAIRS:
        counts = DATA["steps"][f"{lm} + {rm}"]
        assert sum(launches.products(lm, head=True).values()) == counts["lm"]["linear"]
        assert sum(launches.products(rm, head=False).values()) == counts["rm"]["linear"]


KERNEL = {"fit": 2, "warps": 4, "loop": 100, "straight": 50}


def launch(**changed):
    at = {"programs": 1, "turns": 0, "ahead": 1, "far": 0, "near": 0, "bytes": 0.0, "floor": 0.0}
    return Launch("kernel", **{"kernel": KERNEL, **at, **changed})


def test_a_kernel_by_hand():
    clock = gpu_model.CLOCK[90]
    straight = 50 * gpu_model.CYCLES / clock
    assert launch().seconds(DEVICES["h100"], 90) == pytest.approx(LAUNCH + straight)
    # A turn of one block ahead waits for it; four ahead, for a quarter of that, or for the loop.
    loop = 100 * gpu_model.CYCLES / clock
    one, four = (launch(turns=3, ahead=n).program(90) for n in (1, 4))
    assert one == pytest.approx(straight + 3 * FAR)
    assert four == pytest.approx(straight + 3 * max(FAR / 4, loop))
    # Two waves where there is one program more than places.
    places = MACHINES[90].multiprocessors * 2
    full, more = (launch(programs=n).seconds(DEVICES["h100"], 90) for n in (places, places + 1))
    assert more - LAUNCH == pytest.approx(2 * (full - LAUNCH))
    slow = Device("", 1e9, {"bfloat16": 1e9}, "")
    assert launch(bytes=9e8).seconds(slow, 90) == pytest.approx(LAUNCH + FAR + 1)
    assert launch(flops=2e9).seconds(slow, 90) == pytest.approx(LAUNCH + 2)


def test_no_prediction_is_below_its_floor():
    for where, found in predict._launches(H100):
        assert found.seconds(H100.device, 90) > found.floor / H100.device.bandwidth, where
    for lm, rm in launches.PAIRS:
        found = step(H100, lm, rm, 1900)
        assert found.greedy < found.lookahead[0] <= found.lookahead[1] < found.sequential
        assert found.lm.bytes == pytest.approx(
            predict.floor(
                lm, rm, k=10, t=1900, batch=1, dtype="bfloat16", device=H100.device
            ).lm.bytes,
            rel=0.01,
        )


def test_a_loop_is_found_in_a_listing():
    lines = ["MOV R1, R2", "LDGSTS.E.BYPASS.128 [R8], [R2.64]", "HMMA R1, R2", "@!P0 BRA 0x10"]
    lines += ["IADD R1, R1", "@P1 BRA 0x40", "EXIT", "BRA 0x70", "NOP"]
    sass = "\n".join(f"        /*{16 * i:04x}*/    {line} ;" for i, line in enumerate(lines))
    kernel = Kernel("k", 90, 4, 3, 32, 0, 0, sass)
    assert (kernel.loop, kernel.straight) == (3, 4)


def test_views_launch_nothing():
    with launches._Trace() as trace:
        x = torch.ones(4, 6)
        y = x.view(6, 4)[1:].transpose(0, 1)
        y.add_(1)
        torch.empty(3)
        (x + 1).reshape(24)
    assert trace.names == ["ones", "add_", "add"]
