"""Models at true sizes with random weights: speed does not depend on what the weights say.

They are built where they run and in the type they run in, so no float32 copy is ever held.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from args_fast import ArgsDecoder
from args_fast.errors import ConfigError

Make = Callable[[], PreTrainedConfig]

OPT = ("num_hidden_layers", "hidden_size", "num_attention_heads", "word_embed_proj_dim")
KV = ("num_key_value_heads", "intermediate_size", "vocab_size", "max_position_embeddings")
LLAMA = (*OPT[:3], *KV)
QWEN3 = (*OPT[:3], "intermediate_size", "tie_word_embeddings")
QWEN3_REST: dict[str, Any] = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
QWEN3_REST["max_position_embeddings"] = 40960
TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}


def _named(names: tuple[str, ...], sizes: tuple[int, ...]) -> dict[str, Any]:
    return dict(zip(names, sizes, strict=True))


def _opt(*sizes: int) -> Make:
    # OPT-350M alone projects its embeddings (512 to 1024) and normalises after the layers.
    more: dict[str, Any] = {"do_layer_norm_before": sizes[1] == sizes[3], "ffn_dim": 4 * sizes[1]}
    return lambda: OPTConfig(**_named(OPT, sizes), **more)


def _llama(*sizes: int, theta: float) -> Make:
    rope: Any = {"rope_type": "default", "rope_theta": theta}
    return lambda: LlamaConfig(**_named(LLAMA, sizes), rope_parameters=rope)


def _qwen3(*sizes: int) -> Make:
    return lambda: Qwen3Config(**_named(QWEN3, sizes), **QWEN3_REST)


CONFIGS: dict[str, Make] = {
    "opt-125m": _opt(12, 768, 12, 768),
    "opt-350m": _opt(24, 1024, 16, 512),
    "opt-1.3b": _opt(24, 2048, 32, 2048),
    "opt-2.7b": _opt(32, 2560, 32, 2560),
    "opt-6.7b": _opt(32, 4096, 32, 4096),
    "llama-7b": _llama(32, 4096, 32, 32, 11008, 32000, 2048, theta=1e4),
    "llama-3-8b": _llama(32, 4096, 32, 8, 14336, 128256, 8192, theta=5e5),
    "qwen3-0.6b": _qwen3(28, 1024, 16, 3072, True),
    "qwen3-1.7b": _qwen3(28, 2048, 16, 6144, True),
    "qwen3-4b": _qwen3(36, 2560, 32, 9728, True),
    "qwen3-8b": _qwen3(36, 4096, 32, 12288, False),
    # Of no published size: for rehearsals and tests.
    "tiny-opt": lambda: OPTConfig(**TINY, ffn_dim=128, word_embed_proj_dim=64),
    "tiny-llama": lambda: LlamaConfig(**TINY, intermediate_size=96),
    "tiny-qwen3": lambda: Qwen3Config(
        **TINY, intermediate_size=96, num_key_value_heads=2, head_dim=16
    ),
}


def tiny(name: str) -> str:
    """The tiny model of the same architecture."""
    return f"tiny-{name.removeprefix('tiny-').partition('-')[0]}"


def config(name: str) -> PreTrainedConfig:
    """The configuration of a model in ``CONFIGS``, with one label for its classifier."""
    if name not in CONFIGS:
        raise ConfigError(f"{name!r} is not a model to measure; choose from {', '.join(CONFIGS)}")
    made = CONFIGS[name]()
    made.num_labels = 1
    return made


def language_model(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config(name), dtype=dtype).eval()


def reward_model(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(config(name), dtype=dtype).eval()


def random_pair(
    lm: str,
    rm: str,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache_bytes: int | None = None,
) -> ArgsDecoder:
    """A decoder over models of these names, with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    models = language_model(lm, device, dtype), reward_model(rm, device, dtype)
    return ArgsDecoder(*models, cache_bytes=cache_bytes)
