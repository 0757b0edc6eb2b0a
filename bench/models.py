"""Models at true sizes with random weights: speed does not depend on what the weights say."""

import torch
from transformers import OPTConfig, OPTForCausalLM, OPTForSequenceClassification

from args_fast import ArgsDecoder

SIZES = {
    # name: layers, hidden, heads, feed-forward, embedding (OPT-350M projects 512 to 1024)
    "opt-125m": (12, 768, 12, 3072, 768),
    "opt-350m": (24, 1024, 16, 4096, 512),
    "opt-1.3b": (24, 2048, 32, 8192, 2048),
    "opt-2.7b": (32, 2560, 32, 10240, 2560),
    "opt-6.7b": (32, 4096, 32, 16384, 4096),
}


def opt_config(name: str) -> OPTConfig:
    layers, hidden, heads, feed_forward, embedding = SIZES[name]
    return OPTConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        ffn_dim=feed_forward,
        word_embed_proj_dim=embedding,
        do_layer_norm_before=name != "opt-350m",
        num_labels=1,
    )


def random_pair(lm: str, rm: str, *, seed: int = 0) -> ArgsDecoder:
    """A decoder over OPT models of these sizes, float32, on the CPU."""
    torch.manual_seed(seed)
    return ArgsDecoder(
        OPTForCausalLM(opt_config(lm)).eval(),
        OPTForSequenceClassification(opt_config(rm)).eval(),
    )
