"""Every architecture that transformers can build, made tiny.

A configuration is made small by the names of its fields, because most architectures share them;
``SPECIAL`` has what an architecture wants otherwise. What depends on the length of a text (windows,
chunks, top-k of an index, thresholds) is set to a length that the caller chooses.
"""

import warnings

import torch
import transformers as t
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

VOCABULARY = 61
POSITIONS = 256
KINDS = {
    "causal": (MODEL_FOR_CAUSAL_LM_MAPPING, t.AutoModelForCausalLM),
    "classification": (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        t.AutoModelForSequenceClassification,
    ),
}
LARGEST = 3_000_000  # parameters

_SIZES = {
    VOCABULARY: "vocab_size unpadded_vocab_size vocab_size_per_layer_input decoder_vocab_size",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length "
    "max_target_positions max_source_positions context_length",
    48: "intermediate_size ffn_dim n_inner ffn_hidden_size d_ff dff dim_ff d_inner hidden_dim "
    "encoder_ffn_dim decoder_ffn_dim moe_intermediate_size shared_expert_intermediate_size "
    "shared_intermediate_size shared_experts_intermediate_size feed_forward_size "
    "moe_shared_expert_intermediate_size expert_ffn_hidden_size intermediate_size_mlp "
    "prefix_dense_intermediate_size dense_intermediate_size router_hidden_size",
    32: "hidden_size d_model n_embd dim emb_dim embedding_dim embedding_size input_embedding_size "
    "output_embedding_size word_embed_proj_dim lru_width true_hidden_size attention_hidden_size "
    "prediction_head_size",
    16: "head_dim global_head_dim d_kv kv_channels dim_head attention_head_dim swa_head_dim "
    "attention_head_size d_head qk_head_dim q_lora_rank kv_lora_rank o_lora_rank laurel_rank "
    "gated_norm_rank index_head_dim hidden_size_per_layer_input adapter_rank hc_lowrank "
    "loop_gate_rank",
    12: "v_head_dim",
    8: "qk_rope_head_dim qk_nope_head_dim d_rel rotary_dim mamba_d_state state_size "
    "ssm_state_size mamba_head_dim mamba_headdim mamba_d_head linear_key_head_dim "
    "linear_value_head_dim linear_head_dim",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
    "attention_heads swa_num_attention_heads num_self_attention_heads num_cross_attention_heads "
    "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num "
    "linear_num_key_heads linear_num_value_heads mamba_n_heads n_mamba_heads index_n_heads",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers num_layers_per_stack num_key_value_heads num_kv_heads "
    "swa_num_key_value_heads num_query_groups num_experts_per_tok num_experts_per_token moe_topk "
    "moe_k top_k_experts n_shared_experts num_shared_experts moe_num_shared_experts "
    "index_topk_blocks",
    1: "topk_group n_group num_expert_group moe_layer_start_index first_k_dense_replace "
    "num_dense_layers num_kv_shared_layers decoder_sparse_step",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# fmt: off
LENGTHS = {
    "sliding_window", "sliding_window_size", "attention_window_size", "window_size",
    "attention_chunk_size", "floor_scale", "log_scaling_n_floor", "rel_extent", "index_topk",
    "keep_window_size", "local_attention", "local_attention_window_len", "attention_window",
    "indexer_budget", "relative_attention_max_distance", "position_bias_max_distance",
    "mem_len", "num_landmarks", "segment_means_seq_len", "block_size",
    "local_attn_chunk_length", "lsh_attn_chunk_length", "original_max_position_embeddings",
    "max_rel_pos", "local_transformer_stride", "chunk_size", "mamba_chunk_size",
}
# fmt: on
SIZES["index_block_size"] = 4
LAYER_KINDS = ("layer_types", "layers_block_type", "block_types")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

MLA = {"num_key_value_heads": 4, "head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64}
MIXED = ["sliding_attention", "full_attention"]
SHARED = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": MIXED * 2}
SPECIAL = {
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": MLA | {"num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "dory": {"num_hidden_layers": 4, "layer_types": MIXED * 2, "n_input_layers": 1}
    | {"n_recurrent_layers": 2, "n_output_layers": 1},
    "dots1": {"moe_intermediate_size": 48, "num_experts_per_tok": 2, "n_routed_experts": 4}
    | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "esm": {"mask_token_id": 4},
    "falcon_h1": MAMBA,
    "gemma3n_text": SHARED
    | {"activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "intermediate_size": 48},
    "gemma4_text": SHARED,
    "gemma4_unified_text": SHARED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": MAMBA,
    "helium": {"head_dim": 8},
    "hrm_text": {"num_layers_per_stack": None, "num_hidden_layers": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 2},
    "ministral": {"head_dim": 16},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 32},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 4},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    | {"indexer_compress_ratio": 4},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]}
    | {"attn_layers": ["local", "lsh"]},
    "roc_bert": {"pronunciation_vocab_size": 61, "shape_vocab_size": 61}
    | {"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}
    | {"mamba_dt_rank": 2},
    "zaya": {"num_experts_per_tok": 1},
}


def _rope(kind, length, **more):
    return {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": length,
    } | more


# Configurations that an architecture may have and its defaults have not: name, then fields as a
# function of the length.
VARIANTS = {
    "llama+linear": lambda n: {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4} | {"factor": 4.0}
    },
    "llama+dynamic": lambda n: {"rope_parameters": _rope("dynamic", n)},
    "llama+yarn": lambda n: {"rope_parameters": _rope("yarn", n)},
    "llama+longrope": lambda n: {
        "rope_parameters": _rope("longrope", n, short_factor=[1.0] * 8, long_factor=[3.0] * 8)
    },
    "llama+llama3": lambda n: {
        "rope_parameters": _rope("llama3", n, low_freq_factor=1.0, high_freq_factor=4.0)
    },
    "llama+biases": lambda n: {"attention_bias": True, "mlp_bias": True},
    "llama+tied": lambda n: {"tie_word_embeddings": True},
    "llama+window": lambda n: {"sliding_window": n},
    "llama+threshold": lambda n: {"attn_floor_scale": n},
    "qwen2+mixed": lambda n: (
        {"layer_types": MIXED, "use_sliding_window": True} | {"sliding_window": n}
    ),
    "qwen3+mixed": lambda n: (
        {"layer_types": MIXED, "use_sliding_window": True} | {"sliding_window": n}
    ),
    "mistral+full": lambda n: {"sliding_window": None},
    "phimoe+window": lambda n: {"sliding_window": n},
    "doge+window": lambda n: {"sliding_window": n},
    "starcoder2+window": lambda n: {"sliding_window": n},
    "gemma2+bidirectional": lambda n: {"use_bidirectional_attention": True},
    "gemma3_text+bidirectional": lambda n: {"use_bidirectional_attention": True},
    "minimax_m3_vl_text+sparse": lambda n: {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "llama4_text+full": lambda n: {"layer_types": ["full_attention"] * 2, "no_rope_layers": [0, 0]},
    "lfm2+conv": lambda n: {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "opt+postnorm": lambda n: {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "gpt2+scaled": lambda n: {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neox+sequential": lambda n: {"use_parallel_residual": False},
    "gpt_bigcode+heads": lambda n: {"multi_query": False},
    "olmo+clipped": lambda n: {"clip_qkv": 0.5},
    "bert+decoder": lambda n: {"is_decoder": True},
    "roberta+decoder": lambda n: {"is_decoder": True},
    "electra+decoder": lambda n: {"is_decoder": True},
    "xlm-roberta+decoder": lambda n: {"is_decoder": True},
    "falcon+alibi": lambda n: {"alibi": True},
}


class CannotBuildError(Exception):
    """transformers does not build it at this size: a package is missing, or parts stay large."""


def names(kind):
    """Every architecture of a kind by its model type, with the variants that there are of it."""
    types = sorted({config.model_type for config in KINDS[kind][0].keys()})  # noqa: SIM118
    return types + [name for name in VARIANTS if name.partition("+")[0] in types]


def build(kind, name, length, *, unset=False):
    """A model in eval mode with large weights, no two scores close.

    Args:
        kind: of KINDS.
        name: of ``names(kind)``.
        length: of every window, chunk, top-k and threshold.
        unset: set such fields too where the default is None.

    Raises:
        CannotBuildError: with the reason.
    """
    mapping, auto = KINDS[kind]
    model_type, _, variant = name.partition("+")
    config_class = next(c for c in mapping.keys() if c.model_type == model_type)  # noqa: SIM118
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fields = _fields(config_class(), length, unset)
            if variant:
                fields |= VARIANTS[name](length)
            config = config_class(**fields, **({} if kind == "causal" else {"num_labels": 1}))
            with torch.device("meta"):
                size = sum(p.numel() for p in auto.from_config(config).parameters())
            if size > LARGEST:
                raise CannotBuildError(f"{size / 1e6:.0f} M parameters at its smallest")
            torch.manual_seed(3)
            model = auto.from_config(config).eval()
    except CannotBuildError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise CannotBuildError(f"{type(error).__name__}: {said[:120]}") from error
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise * (0.15 if weight.dim() > 1 else 0.1))
    return model


def _fields(base, length, unset):
    """Arguments that make a configuration tiny."""
    given = base.to_dict()
    fields = {}
    for name, value in given.items():
        if name == "use_sliding_window":
            fields[name] = True
        elif isinstance(value, bool):
            continue
        elif name in LENGTHS and (isinstance(value, (int, float)) or (unset and value is None)):
            fields[name] = length
        elif name in SIZES and (isinstance(value, int) or name.endswith("token_id")):
            fields[name] = SIZES[name]
        elif isinstance(value, float) and "drop" in name:
            fields[name] = 0.0
        elif name in ("initializer_range", "init_std", "embedding_initializer_range"):
            fields[name] = 0.2
        elif name == "rope_parameters" and "original_max" in str(value):
            fields[name] = _shrunk(value, length)
    fields |= _layers(given, fields)
    for name in base.sub_configs:
        part = getattr(base, name, None)
        if hasattr(part, "to_dict"):
            fields[name] = _fields(part, length, unset) | {"model_type": part.model_type}
    if "qk_rope_head_dim" in given:
        fields |= {name: value for name, value in MLA.items() if name in given}
    return fields | SPECIAL.get(base.model_type, {})


def _shrunk(rope, length):
    lengths = {"original_max_position_embeddings": length, "max_position_embeddings": POSITIONS}
    return {
        name: _shrunk(value, length) if isinstance(value, dict) else lengths.get(name, value)
        for name, value in rope.items()
    }


def _layers(given, fields):
    """One layer of every kind that there is, two at least; other lists are cut to as many."""
    changed, depth = {}, 2
    for name in LAYER_KINDS:
        if given.get(name):
            kinds = list(dict.fromkeys(given[name]))
            changed[name] = kinds if len(kinds) > 1 else kinds * 2
            depth = max(depth, len(kinds))
    for name, value in given.items():
        listed = isinstance(value, list) and len(value) == given.get("num_hidden_layers")
        if listed and name not in (*LAYER_KINDS, "architectures"):
            kinds = list(dict.fromkeys(value)) if isinstance(value[0], str) else value
            cut = [*kinds[: depth - 1], kinds[-1]]
            changed[name] = (kinds * depth)[:depth] if len(kinds) <= depth else cut
    if "layer_types" in changed:
        changed["layer_types"] = (changed["layer_types"] * depth)[:depth]
    return changed | {name: depth for name in DEPTHS if name in fields}
