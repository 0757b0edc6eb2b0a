"""Models at true sizes with random weights: speed does not depend on what the weights say.

They are built where they run and in the type they run in, so no float32 copy is ever held.
"""

from collections.abc import Callable

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


def _opt(layers: int, hidden: int, heads: int, embedding: int | None = None) -> OPTConfig:
    # OPT-350M alone projects its embeddings (512 to 1024) and normalises behind the layers.
    return OPTConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        word_embed_proj_dim=embedding or hidden,
        do_layer_norm_before=embedding is None,
    )


def _qwen3(
    layers: int, hidden: int, feed_forward: int, heads: int, *, tied: bool = True
) -> Qwen3Config:
    return Qwen3Config(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=tied,
    )


def _llama_7b() -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        intermediate_size=11008,
        vocab_size=32000,
        max_position_embeddings=2048,
    )


def _llama_3_8b() -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )


TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "opt-125m": lambda: _opt(12, 768, 12),
    "opt-350m": lambda: _opt(24, 1024, 16, embedding=512),
    "opt-1.3b": lambda: _opt(24, 2048, 32),
    "opt-2.7b": lambda: _opt(32, 2560, 32),
    "opt-6.7b": lambda: _opt(32, 4096, 32),
    "llama-7b": _llama_7b,
    "llama-3-8b": _llama_3_8b,
    "qwen3-0.6b": lambda: _qwen3(28, 1024, 3072, 16),
    "qwen3-1.7b": lambda: _qwen3(28, 2048, 6144, 16),
    "qwen3-4b": lambda: _qwen3(36, 2560, 9728, 32),
    "qwen3-8b": lambda: _qwen3(36, 4096, 12288, 32, tied=False),
    # Of no published size: for dry runs and tests.
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
        raise KeyError(f"there is no model {name!r} to measure, but {', '.join(CONFIGS)}")
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
    pair = language_model(lm, device, dtype), reward_model(rm, device, dtype)
    return ArgsDecoder(*pair, cache_bytes=cache_bytes)
