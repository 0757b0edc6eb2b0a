"""What a model's attention looks like, learned by asking it: one token through one forward pass."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from args_fast.errors import ArgsError, UnsupportedModelError
from args_fast.kvcache.storage import CacheLayout
from args_fast.models.attention import CONTEXT, AttentionOptions, driven
from args_fast.models.kinds import check_kind
from args_fast.models.limits import WINDOWS, Limits, limits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ELSEWHERE = "use another architecture, or args_fast.reference.decode."


@dataclass(frozen=True)
class Traits:
    """What the engine has to know of a model.

    Attributes:
        layout: what a token occupies.
        plain_up_to: the longest text over which torch's own causal attention is the model's.
        sinks: whether a layer has attention sinks.
        options: what each layer asks of its attention, in their order.
        limits: how long texts may be.
    """

    layout: CacheLayout
    plain_up_to: float
    sinks: bool
    options: tuple[AttentionOptions, ...]
    limits: Limits


@dataclass
class _Recorder:
    """An AttentionContext for a single token, which sees only itself."""

    calls: dict[int, tuple[Tensor, Tensor, AttentionOptions]] = field(default_factory=dict)
    repeated: bool = False
    gives_states: bool = False

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        self.repeated |= layer in self.calls
        self.calls[layer] = (key, value, options)
        out = value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return out.transpose(1, 2)


def probe(model: PreTrainedModel, role: str) -> Traits:
    """Run one token and read the shapes and options of every layer's attention.

    Raises UnsupportedModelError where the model's text cannot be stored as keys and values of one
    shape, or where its attention is not what reaches the engine.
    """
    name = f"the {role} ({type(model).__name__})"
    config = check_kind(model, role)
    if model._is_stateful:
        raise UnsupportedModelError(
            f"{name} carries a recurrent state, which cannot be branched as keys and values can; "
            "use a model with attention in every layer, or args_fast.reference.decode."
        )
    if not model._supports_attention_backend:
        raise UnsupportedModelError(
            f"{name} does not support transformers' attention interface, so the engine cannot "
            f"store its keys and values; {ELSEWHERE}"
        )
    recorder = _run(model, name)
    _check_layers(recorder, config.num_hidden_layers, name)
    _check_windows(recorder, config, name)
    if not recorder.gives_states:
        raise UnsupportedModelError(
            f"the base model of {name} does not give a hidden state for each token; {ELSEWHERE}"
        )

    key = recorder.calls[0][0]
    if key.dtype not in DTYPES:
        raise UnsupportedModelError(
            f"{name} computes in {key.dtype}; the engine takes float32, bfloat16 and float16. "
            "Convert it: model.float()"
        )
    options = tuple(recorder.calls[layer][2] for layer in sorted(recorder.calls))
    sinks = any(o.sinks is not None for o in options)
    special = sinks or any(o.softcap for o in options)
    windows = {o.sliding_window for o in options if o.sliding_window}
    layout = CacheLayout(len(options), key.shape[1], key.shape[3], key.dtype, key.device)
    plain_up_to = 0 if special else min(windows, default=math.inf)
    return Traits(layout, plain_up_to, sinks, options, limits(config, windows))


def _run(model: PreTrainedModel, name: str) -> _Recorder:
    recorder = _Recorder()
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode(), driven(model):
            out = model.base_model(
                input_ids=token, position_ids=token, use_cache=False, **{CONTEXT: recorder}
            )
            recorder.gives_states = hasattr(out, "last_hidden_state")
    except ArgsError as error:
        raise UnsupportedModelError(f"{name}: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UnsupportedModelError(
                f"some weights of {name} are not in memory: they are offloaded, or were never "
                "loaded. Load it without device_map or offloading, on one device."
            ) from error
        raise UnsupportedModelError(
            f"{name} does not run as a causal transformer driven by the engine "
            f"({type(error).__name__}: {error}); {ELSEWHERE}"
        ) from error
    return recorder


def _check_layers(recorder: _Recorder, layers: int, name: str) -> None:
    if not recorder.calls:
        raise UnsupportedModelError(
            f"no layer of {name} asked for the engine's attention: its layers do not follow its "
            "own configuration (a body taken from another model does not). Load the model as a "
            "whole, or use args_fast.reference.decode."
        )
    if recorder.repeated or sorted(recorder.calls) != list(range(layers)):
        raise UnsupportedModelError(
            f"{name} has {layers} layers, but the engine's attention was asked by layers "
            f"{sorted(recorder.calls)}{' more than once' if recorder.repeated else ''}: the others "
            "keep a state of another kind. Use a model with ordinary attention in every layer, or "
            "args_fast.reference.decode."
        )
    shapes = {tuple(row.shape) for key, value, _ in recorder.calls.values() for row in (key, value)}
    if len(shapes) > 1:
        raise UnsupportedModelError(
            f"the keys and values of {name} have different shapes {sorted(shapes)} "
            "(1, heads, 1, head size); the cache holds one shape. Use another architecture, or "
            "args_fast.reference.decode."
        )


def _check_windows(recorder: _Recorder, config: object, name: str) -> None:
    """A window that lives only in a mask would never reach the engine, and be ignored silently."""
    types = getattr(config, "layer_types", None)
    if types is None:
        configured = [w for w in WINDOWS if isinstance(getattr(config, w, None), int)]
        if getattr(config, "use_sliding_window", True) is False:
            configured = []
        seen = any(options.sliding_window for _, _, options in recorder.calls.values())
        if configured and not seen:
            raise UnsupportedModelError(
                f"{name} is configured with {configured[0]} = {getattr(config, configured[0])}, "
                "which it does not pass to its attention; use another architecture, or "
                "args_fast.reference.decode."
            )
        return
    for layer, kind in enumerate(types):
        windowed = recorder.calls[layer][2].sliding_window > 0
        if kind not in ("full_attention", "sliding_attention") or (
            windowed != (kind == "sliding_attention")
        ):
            raise UnsupportedModelError(
                f"layer {layer} of {name} is of type {kind!r} but asked its attention for "
                f"{'a' if windowed else 'no'} sliding window; use another architecture, or "
                "args_fast.reference.decode."
            )
