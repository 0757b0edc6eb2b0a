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

from args_fast.engine.runner import Runner
from args_fast.engine.step import begin_lookahead, step
from args_fast.engine.streams import SideStream
from args_fast.kvcache.storage import PagedCache
from args_fast.models import backbone, prefill
from args_fast.models.backbone import Backbone
from args_fast.rewards.classifier import BranchedClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))
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
    rm = BranchedClassifier(moved(t.AutoModelForSequenceClassification, config, THERE))
    assert (lm.device, rm.device) == (HERE, THERE)
    caches = PagedCache(lm.layout, 8), PagedCache(rm.layout, 8)
    for model, cache in zip((lm, rm), caches, strict=True):
        model.prefill(cache, [5, 6, 7], [1])
    options = {"guided": True, "rows": 2, "steps": 4, "padded": False, "graphs": False}
    beside = SideStream(lm.device, rm.device)
    batch = Runner(lm, rm, caches, beside, lookahead=lookahead, **options)._make((2, 3, 4, mixed))
    if batch.ahead is not None:
        begin_lookahead(lm, batch)
    step(lm, rm, batch, beside)
    assert {x.device for x in (batch.tokens, batch.numbers, batch.lm.page_table)} == {HERE}
    assert {x.device for x in (batch.rm.page_table, batch.rm.lengths, batch.rm.k)} == {THERE}
    with pytest.raises(RuntimeError, match="device"):  # or all of this would show nothing
        rm.hidden(batch.token, batch.rm.positions(), batch.rm)


backbone.send = prefill.send = sent
with FakeTensorMode(), torch.inference_mode():
    for lookahead, mixed in itertools.product((0, math.inf), (False, True)):
        check("llama", lookahead, mixed=mixed)
    for name in ("opt", "gpt2", "qwen3"):
        check(name, math.inf, mixed=True)
print("all moved")
