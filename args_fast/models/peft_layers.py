"""peft's layers in a model, taken apart into the low-rank terms that they add."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from args_fast.models.low_rank import LowRank


class Inseparable(Exception):
    """An adapter does more than add low-rank terms to linear layers; the message says what."""


def take_apart(model: PreTrainedModel) -> list[LowRank]:
    """Replace peft's layers in the base model of ``model`` by the layers that they stand on.

    Returns the terms that they added. Raises Inseparable, and then nothing has changed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base: Any = model.base_model
    terms, layers = [], []
    for name, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise Inseparable(f"it has trained {name} as a whole")
        if isinstance(module, BaseTunerLayer):
            terms += _terms(name, module)
            layers.append((name, module.get_base_layer()))
    if not layers:
        raise Inseparable("peft has put no layers of its own into the base model")
    for name, layer in layers:
        base.set_submodule(name, layer)
    return terms


def _terms(name: str, module: Any) -> list[LowRank]:
    """What one of peft's layers adds: a term or nothing."""
    from peft.tuners.lora.layer import Linear

    kind, layer = type(module), module.get_base_layer()
    if kind is not Linear or type(layer) not in (nn.Linear, Conv1D):
        raise Inseparable(f"{name} is a {kind.__name__} of peft over a {type(layer).__name__}")
    if module.merged_adapters:
        raise Inseparable(f"{name} has it in its weights already")
    active = [] if module.disable_adapters else module.active_adapters
    active = [adapter for adapter in active if adapter in module.lora_A]
    if len(active) > 1:
        raise Inseparable(f"{name} has several adapters: {', '.join(active)}")
    if not active:
        return []
    (adapter,) = active
    if variant := module.lora_variant.get(adapter):
        raise Inseparable(f"{name} is computed in another way ({type(variant).__name__})")
    a, b, scale = module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter]
    bias = None if b.bias is None else b.bias.detach().float() * scale
    return [LowRank(name, a.weight.detach().clone(), b.weight.detach().float() * scale, bias)]
