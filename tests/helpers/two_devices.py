"""Steps of two models on two devices, whose tensors have a device and no data: whatever meets from
both without being moved is an error, as on two GPUs. A process of its own, because the devices are
registered for good."""

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
import transformers as t
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from args_fast.engine.batch import Batch, Shape
from args_fast.engine.step import begin, step
from args_fast.engine.streams import SideStream
from args_fast.kvcache.memory import BatchMemory
from args_fast.kvcache.pages import PagedText
from args_fast.kvcache.storage import PagedCache
from args_fast.models import backbone, prefill
from args_fast.models.backbone import Backbone
from args_fast.rewards import Classifier
from args_fast.rewards.panel import Panel

sys.path.insert(0, str(Path(__file__).parent))
from tiny_models import CONFIGS

_setup_privateuseone_for_python_backend("fake")
HERE, THERE = (torch.device("fake", i) for i in range(2))


def sent(values: list, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers cannot become such a tensor."""
    return torch.empty(torch.tensor(values).shape, dtype=dtype, device=device)


def moved(kind: type, config: t.PretrainedConfig, device: torch.device) -> t.PreTrainedModel:
    """model.to() does not know such tensors."""
    model = kind.from_config(config).eval()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(weight.to(device), False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to(device)
    return model


def check(name: str, lookahead: float, *, mixed: bool) -> None:
    config = CONFIGS[name]()
    lm = Backbone(moved(t.AutoModelForCausalLM, config, HERE), "language model")
    rm = Classifier(moved(t.AutoModelForSequenceClassification, config, THERE))
    assert (lm.device, rm.device) == (HERE, THERE)
    panel = Panel({"reward": rm})
    panel.allocate(8, lm.device)
    cache, store = PagedCache(lm.layout, 8), panel.stores["reward"]
    lm.prefill(cache, [5, 6, 7], [1])
    rm.fill(store, PagedText([5, 6, 7], [1]), 0, 3)
    side = SideStream(lm.device, [rm.device])
    memory = BatchMemory(lm.device, 2, 8, lambda: None)
    memory.reshape(2, 3, {0: 4})
    shape = Shape(2, 3, ((0, 4),), mixed, False, False, ahead=bool(lookahead))
    batch = Batch(shape, memory, lm, cache, panel, "reward", steps=4)
    if batch.reads_ahead:
        begin(batch)
    step(batch, side)
    last, branches = batch.proposer._last, batch.judge._branches
    assert {x.device for x in (batch.tokens, batch.stats, last.page_table)} == {HERE}
    assert {x.device for x in (branches.page_table, branches.lengths, branches.k)} == {THERE}
    with pytest.raises(RuntimeError, match="device"):  # or all of this would show nothing
        rm.backbone.hidden(batch.token, branches.positions(), branches)


backbone.send = prefill.send = sent
with FakeTensorMode(), torch.inference_mode():
    for lookahead, mixed in itertools.product((0, math.inf), (False, True)):
        check("llama", lookahead, mixed=mixed)
    for name in ("opt", "gpt2", "qwen3"):
        check(name, math.inf, mixed=True)
print("all moved")
