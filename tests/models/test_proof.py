"""Which models are refused at load: those that cannot be stored, and those that fail the proof."""

import copy

import pytest
import torch
import transformers as t
from refusals import refuses
from tiny_models import IDS, LENGTH, language_model, reward_model, tokens

from args_fast import ArgsDecoder, ArgsError
from args_fast.errors import ProofError, UnsupportedModelError

# ---- models that cannot be driven ----------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.3}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
MLA = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}

UNSUPPORTED = {
    "t5": (
        t.T5ForConditionalGeneration,
        lambda: t.T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4),
        "encoder-decoder",
    ),
    "bart": (
        t.BartForConditionalGeneration,
        lambda: t.BartConfig(**IDS, **BART),
        "encoder-decoder",
    ),
    "mamba": (
        t.MambaForCausalLM,
        lambda: t.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4),
        "recurrent state",
    ),
    "jamba": (
        t.JambaForCausalLM,
        lambda: t.JambaConfig(
            **IDS, **GROUPED, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False
        ),
        "recurrent state",
    ),
    "lfm2": (
        t.Lfm2ForCausalLM,
        lambda: t.Lfm2Config(**IDS, **GROUPED, layer_types=["conv", "full_attention"]),
        "asked by layers [1]",
    ),
    "falcon": (t.FalconForCausalLM, lambda: t.FalconConfig(**IDS, **SMALL), "attention interface"),
    "bloom": (
        t.BloomForCausalLM,
        lambda: t.BloomConfig(**IDS, hidden_size=32, n_layer=1, n_head=4),
        "attention interface",
    ),
    "mpt": (
        t.MptForCausalLM,
        lambda: t.MptConfig(vocab_size=61, d_model=32, n_heads=4, n_layers=1, max_seq_len=LENGTH),
        "attention interface",
    ),
    "llama4": (
        t.Llama4ForCausalLM,
        lambda: t.Llama4TextConfig(
            **IDS, **GROUPED, intermediate_size_mlp=48, head_dim=8, num_local_experts=2
        ),
        "'chunked_attention'",
    ),
    "deepseek_v3": (
        t.DeepseekV3ForCausalLM,
        lambda: t.DeepseekV3Config(
            **IDS, **(GROUPED | MLA | {"num_key_value_heads": 4}), first_k_dense_replace=1
        ),
        "different shapes",
    ),
}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_a_model_whose_text_is_not_ours_to_store(name):
    kind, config, said = UNSUPPORTED[name]
    model = kind(config())
    with refuses(UnsupportedModelError, "the language model", kind.__name__, said, "use a"):
        ArgsDecoder(model, reward_model())


@pytest.mark.parametrize(
    "kind", [t.BloomForSequenceClassification, t.FalconForSequenceClassification]
)
def test_a_reward_model_is_refused_like_a_language_model(kind):
    config = kind.config_class(**IDS, hidden_size=32, n_layer=1, n_head=4, num_labels=1)
    config.num_attention_heads = 4
    with refuses(UnsupportedModelError, "the reward model", kind.__name__, "attention interface"):
        ArgsDecoder(language_model(), kind(config))


def test_a_module_that_is_no_transformers_model():
    wrapped = torch.nn.Sequential(copy.deepcopy(language_model()))
    with refuses(UnsupportedModelError, "Sequential", "PreTrainedModel", "merge_and_unload"):
        ArgsDecoder(wrapped, reward_model())


def test_a_window_that_never_reaches_the_attention():
    lm = copy.deepcopy(language_model())
    lm.config.sliding_window = 7  # a llama does not know what that is
    with refuses(UnsupportedModelError, "sliding_window = 7", "does not pass"):
        ArgsDecoder(lm, reward_model())


# ---- the proof -----------------------------------------------------------------------------------


def by_row(module, args, output):
    """Depends on where a row stands in the forward pass, not on its position in the text."""
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden * (1 + 0.01 * torch.arange(hidden.shape[1])[:, None])
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def by_neighbours(module, args, output):
    """Depends on the row before, which is another branch in one pass and the text in the other."""
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden + 0.1 * hidden.roll(1, dims=1)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def by_the_batch(module, args, output):
    """Depends on the other sequences of the batch."""
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden - 0.1 * hidden.mean(dim=0, keepdim=True)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@pytest.mark.parametrize("role", ["language", "reward"])
@pytest.mark.parametrize("quirk", [by_row, by_neighbours, by_the_batch])
def test_a_model_that_branches_differently_is_refused(role, quirk):
    lm, rm = copy.deepcopy(language_model()), copy.deepcopy(reward_model())
    model = lm if role == "language" else rm
    model.base_model.layers[0].register_forward_hook(quirk)
    with refuses(ProofError, f"the {role} model", type(model).__name__, "relative error", "1e-03"):
        ArgsDecoder(lm, rm)


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_where_the_models_own_attention_may_be_wrong_another_is_named(own):
    # Some versions of transformers give gemma2 torch's attention, which has no softcap.
    lm = copy.deepcopy(language_model())
    lm.base_model.layers[0].register_forward_hook(by_row)
    lm.set_attn_implementation(own)
    with pytest.raises(ProofError) as refused:
        ArgsDecoder(lm, reward_model())
    hint = "Try attn_implementation='eager' when it is loaded (it has 'sdpa')"
    assert (hint in str(refused.value)) == (own == "sdpa")


def test_a_model_that_counts_its_positions_itself_is_refused():
    class Deaf(t.LlamaModel):
        def forward(self, input_ids, position_ids=None, **more):
            return super().forward(input_ids, **more)

    lm = copy.deepcopy(language_model())
    lm.model.__class__ = Deaf
    with refuses(ProofError, "the language model", "LlamaForCausalLM"):
        ArgsDecoder(lm, reward_model())


@pytest.mark.parametrize(
    ("kind", "config"),
    [(t.BertLMHeadModel, t.BertConfig), (t.RobertaForMaskedLM, t.RobertaConfig)],
)
def test_an_encoder_is_refused(kind, config):
    model = kind(config(**IDS, **SMALL, max_position_embeddings=LENGTH, initializer_range=0.3))
    with refuses(ArgsError, "the language model", kind.__name__, "another architecture"):
        ArgsDecoder(model, reward_model())


def test_a_refused_model_goes_on_working():
    lm = copy.deepcopy(language_model())
    before = lm.config._attn_implementation
    hook = lm.model.layers[0].register_forward_hook(by_neighbours)
    with pytest.raises(ProofError):
        ArgsDecoder(lm, reward_model())
    hook.remove()
    assert lm.config._attn_implementation == before
    text = torch.tensor([tokens(9)])
    assert torch.equal(lm(text).logits, language_model()(text).logits)
