"""Tiny random models of many architectures, with weights so large that every part matters."""

import functools
import math

import torch
import transformers as t
from recorded import record

VOCABULARY = 61
LENGTH = 96

IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _llama_like(config, layers=2, heads=4, kv_heads=2, hidden=32, **more):
    return config(
        **IDS,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        num_labels=1,
        **more,
    )


def _gpt_like(config, layers=2, heads=4, hidden=32, **more):
    names = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": LENGTH}
    return config(**IDS, **names, initializer_range=0.3, num_labels=1, **more)


# Every entry takes layers and hidden (a multiple of 16); what hurts in an architecture is set here.
CONFIGS = {
    "llama": functools.partial(_llama_like, t.LlamaConfig),
    "llama_mqa": functools.partial(_llama_like, t.LlamaConfig, kv_heads=1),
    "mistral": functools.partial(_llama_like, t.MistralConfig, sliding_window=7),
    "mixtral": functools.partial(_llama_like, t.MixtralConfig, num_local_experts=4),
    "qwen2": functools.partial(_llama_like, t.Qwen2Config),
    "qwen3": functools.partial(_llama_like, t.Qwen3Config, head_dim=16),
    "gemma2": functools.partial(
        _llama_like,
        t.Gemma2Config,
        head_dim=16,
        sliding_window=6,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=8.0,
    ),
    "gemma3": functools.partial(
        _llama_like,
        t.Gemma3TextConfig,
        head_dim=16,
        sliding_window=5,
        sliding_window_pattern=2,
        final_logit_softcapping=8.0,
    ),
    "phi3": functools.partial(_llama_like, t.Phi3Config),
    "phi": functools.partial(_llama_like, t.PhiConfig),
    "olmo2": functools.partial(_llama_like, t.Olmo2Config),
    "granite": functools.partial(_llama_like, t.GraniteConfig),
    "cohere": functools.partial(_llama_like, t.CohereConfig, logit_scale=1.0),
    "starcoder2": functools.partial(_llama_like, t.Starcoder2Config, sliding_window=6),
    "gpt_oss": functools.partial(
        _llama_like,
        t.GptOssConfig,
        head_dim=16,
        sliding_window=6,
        num_local_experts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "gpt2": functools.partial(_gpt_like, t.GPT2Config),
    "gptj": functools.partial(_gpt_like, t.GPTJConfig, rotary_dim=4),
    "opt": lambda layers=2, hidden=32: t.OPTConfig(
        **IDS,
        hidden_size=hidden,
        ffn_dim=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        word_embed_proj_dim=16,
        init_std=0.3,
        num_labels=1,
    ),
    "gpt_neox": lambda layers=2, hidden=32: t.GPTNeoXConfig(
        **IDS,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        num_labels=1,
    ),
}
if not t.GPTJForCausalLM._supports_attention_backend:
    del CONFIGS["gptj"]  # transformers 5.17 has no attention interface for it: it is refused
WITHOUT_CLASSIFIER = {"granite", "cohere"}
REWARD_CONFIGS = sorted(set(CONFIGS) - WITHOUT_CLASSIFIER)


def attention(name):
    """Of the model itself, with which the oracles run it. Some versions of transformers give gemma2
    torch's, which has no softcap."""
    return {"attn_implementation": "eager"} if name == "gemma2" else {}


@functools.cache
def language_model(name="llama", layers=2, hidden=32, seed=1):
    torch.manual_seed(seed)
    config = CONFIGS[name](layers=layers, hidden=hidden)
    return t.AutoModelForCausalLM.from_config(config, **attention(name)).eval()


@functools.cache
def reward_model(name="llama", layers=2, hidden=32, seed=2):
    torch.manual_seed(seed)
    config = CONFIGS[name](layers=layers, hidden=hidden)
    return t.AutoModelForSequenceClassification.from_config(config, **attention(name)).eval()


# Orders of the engine's work, as options of its scheduler: by default that of the CPU. Steps in
# bursts, a burst launched before the last one is read, and padding are what CUDA does.
BURSTS = {"steps": 3, "in_flight": 1}
ORDERS = {
    "cpu": {},
    "bursts": {**BURSTS, "padded": True},
    "ahead": {**BURSTS, "lookahead": math.inf},
    "captured": {**BURSTS, "padded": True, "recorded": True},
    "captured ahead": {**BURSTS, "padded": True, "recorded": True, "lookahead": math.inf},
}


@functools.cache
def decoder(lm="llama", rm="llama", layers=(2, 2), hidden=(32, 32), order="cpu"):
    from args_fast import ArgsDecoder
    from args_fast.engine.engine import Engine

    pair = ArgsDecoder(
        language_model(lm, layers[0], hidden[0]), reward_model(rm, layers[1], hidden[1])
    )
    options = dict(ORDERS[order]) if order in ORDERS else {"drafted": order == "drafted"}
    if options:
        recorded = options.pop("recorded", False)
        if options.pop("drafted", False):
            from drafters import Dreamer

            options["drafts"] = Dreamer(pair.engine.lm)
        pair.engine = Engine(pair.engine.lm, pair.engine.panel.rewards, pages=60, rows=8, **options)
        if recorded:
            record(pair.engine)
    return pair


def tokens(length, seed=0):
    """A prompt of this many ids, without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
