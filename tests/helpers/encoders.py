"""Tiny encoders with a classification head, and decoders that read long texts."""

import copy
import functools

import torch
import transformers as t
from tiny_models import CONFIGS, VOCABULARY, attention

LENGTH = 1000

SIZES = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,
}
ENCODERS = {
    "bert": functools.partial(t.BertConfig, **SIZES),
    "roberta": functools.partial(t.RobertaConfig, **SIZES, type_vocab_size=1),
    "deberta": functools.partial(
        t.DebertaV2Config,
        **SIZES,
        type_vocab_size=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    "modernbert": functools.partial(
        t.ModernBertConfig,
        **SIZES,
        local_attention=8,
        global_attn_every_n_layers=2,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    ),
}


@functools.cache
def encoder(name, labels=1, seed=3):
    torch.manual_seed(seed)
    config = ENCODERS[name](num_labels=labels)
    return t.AutoModelForSequenceClassification.from_config(config).eval()


@functools.cache
def decoder_classifier(name, labels=1, seed=4):
    """A decoder with a classification head whose texts may be longer than those of tiny_models."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    config.max_position_embeddings = LENGTH
    config.num_labels = labels
    return t.AutoModelForSequenceClassification.from_config(config, **attention(name)).eval()


@functools.cache
def without_padding(model):
    alone = copy.deepcopy(model)
    alone.config.pad_token_id = None
    return alone


@torch.no_grad()
def own_forward(model, tokenizer, *texts, fold=None, **options):
    """r of one text: what transformers gives for it alone."""
    inputs = tokenizer(*texts, return_tensors="pt", **options)
    if model.config.model_type != "bert":  # the only one here that reads segments
        inputs.pop("token_type_ids", None)
    logits = without_padding(model)(**inputs).logits[0].double()
    return sum(weight * logits[i].item() for i, weight in (fold or {0: 1.0}).items())
