"""Up to which length a model is known to compute what it would compute in one pass over the text.

A model may do something else beyond some length: scale its attention, drop far keys, stretch its
positions. Each such length is a number in its configuration. The short ones are thresholds on both
sides of which the proof runs; a text that would cross a long one is refused with the field's name.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from args_fast.errors import LoadError

# The longest threshold that the proof crosses: a pass over so many tokens is affordable anywhere.
LONGEST_PROOF = 512

# Fields that hold a window, which reaches the attention as an argument (checked by the probe).
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")

# What fields are called that hold a length from which on something changes ...
_LENGTHS = re.compile(
    r"window|chunk|top_?k|sparse|block_size|block_len|budget|stride|floor|extent|landmark"
    r"|max_distance|dense_len|mem_len|local_att|local_block|segment|compress_rat|log_?n|log_scaling"
    r"|temperature_tuning"
)
# ... and other fields with such words in their names.
_OTHERS = re.compile(
    r"expert|group|moe|router|norm_topk|mlp|layer|conv|mamba|quant|method|pattern|^top_k$"
    r"|^chunk_size|weight|vocab|_id$|_ids$|freq|rank|dim$"
)
_PARTS = re.compile(r"vision|image|audio|video|speech|quantization|task_specific|label|generation")

# Parameters of rotary embeddings under which a position's angles depend on that position alone.
_STATIC_ROPE = {
    *("rope_type", "type", "rope_theta", "factor", "attention_factor", "partial_rotary_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "rope_interleave"),
    *("low_freq_factor", "high_freq_factor", "short_factor", "long_factor"),
    *("mrope_section", "mrope_interleaved", "interleaved"),
    *("original_max_position_embeddings", "max_position_embeddings"),
}


@dataclass(frozen=True)
class Limits:
    """How long texts may be.

    Attributes:
        max_length: tokens of the longest text, or inf.
        reason: the field that says so where it is not the number of positions, for messages; else
            empty.
        thresholds: lengths within the proof's reach from which on something may change, ascending.
    """

    max_length: float
    reason: str
    thresholds: tuple[int, ...]


def limits(config: PretrainedConfig, windows: Iterable[int]) -> Limits:
    """What a configuration says of the length of texts; ``windows`` are those that the attention
    was seen to get, and takes into account at any length."""
    text = config.get_text_config()
    positions: float = getattr(text, "max_position_embeddings", None) or math.inf
    if not positions >= 1:
        raise LoadError(
            f"max_position_embeddings is {positions} in the model's config.json; it must be the "
            "number of positions, 1 or more"
        )
    lengths = dict(_thresholds(text.to_dict()))
    near = {int(value) for value in (*lengths.values(), *windows) if value <= LONGEST_PROOF}
    bounds = {name: value for name, value in lengths.items() if value > LONGEST_PROOF}
    bounds |= dict(_stretched_positions(text))
    name = min(bounds, key=lambda name: bounds[name], default="")
    if not name or bounds[name] > positions:
        return Limits(positions, "", tuple(sorted(near)))
    reason = (
        f" ({name} = {bounds[name]}: beyond that length it computes what the engine cannot follow)"
    )
    return Limits(bounds[name], reason, tuple(sorted(near)))


def _thresholds(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """Every field, at any depth, that holds such a length."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            if "rope" in name:
                yield from _position_scales(value, f"{path}{name}.")
            elif not _PARTS.search(name):
                yield from _thresholds(value, f"{path}{name}.")
        elif _is_length(name) and not isinstance(value, bool):
            values = value if isinstance(value, (list, tuple)) else [value]
            whole = [v for v in values if isinstance(v, (int, float)) and v > 1 and v == int(v)]
            if whole:
                yield path + name, int(min(whole))


def _is_length(name: str) -> bool:
    return bool(_LENGTHS.search(name)) and not _OTHERS.search(name) and name not in WINDOWS


def _position_scales(rope: Mapping[str, Any], path: str) -> Iterator[tuple[str, int]]:
    """Parameters that scale the attention beyond the original length (``llama_4_scaling_beta``)."""
    for name, value in rope.items():
        if isinstance(value, Mapping):
            yield from _position_scales(value, f"{path}{name}.")
        elif name not in _STATIC_ROPE and isinstance(value, (int, float)) and value:
            original = rope.get("original_max_position_embeddings")
            if original:
                yield f"{path}{name} with original_max_position_embeddings", original


def _stretched_positions(config: PretrainedConfig) -> Iterator[tuple[str, int]]:
    """Rotary embeddings that change all earlier positions once the text outgrows a length."""
    rope = getattr(config, "rope_parameters", None) or {}
    # Some models hold one set of parameters per type of layer.
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        kind = str(parameters.get("rope_type"))
        if "dynamic" not in kind and kind != "longrope":
            continue
        fields = (
            (parameters, "original_max_position_embeddings"),
            (config.to_dict(), "original_max_position_embeddings"),
            (config.to_dict(), "max_position_embeddings"),
        )
        for holder, name in fields:
            if holder.get(name):
                yield f"rope_type {kind!r} with {name}", holder[name]
                break
