"""Coherence is the cosine of pooled embeddings, whichever the encoder and however long the text."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from args_fast.errors import EvaluationError
from args_fast.eval.encoder import Encoder

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]
PROMPTS, RESPONSES = ["a b c", "a b", ""], ["c d", "a b", "h"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(out)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    ).save_pretrained(out)
    return out


@torch.inference_mode()
def embedded(folder, text, pooling):
    model = BertModel.from_pretrained(folder).eval()
    ids = [1, *(WORDS.index(word) for word in text.split()), 2][:12]
    output = model(torch.tensor([ids]))
    states = output.last_hidden_state[0]
    return {"mean": states.mean(dim=0), "cls": states[0], "pooler": output.pooler_output[0]}[
        pooling
    ]


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_coherence_is_the_cosine_of_each_pair_alone(folder, pooling):
    expected = [
        torch.cosine_similarity(
            embedded(folder, prompt, pooling), embedded(folder, response, pooling), dim=0
        ).item()
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    found = Encoder(str(folder), pooling=pooling).coherence(PROMPTS, RESPONSES)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[1] == pytest.approx(1, abs=1e-6)


def test_long_texts_are_cut_to_what_the_encoder_takes(folder):
    encoder = Encoder(str(folder), pooling="mean")
    long = " ".join("abcdefgh" * 4)
    assert encoder.coherence([long], [long]) == pytest.approx([1])


def test_auto_is_sentence_transformers_where_it_is_installed(folder):
    pytest.importorskip("sentence_transformers")
    encoder = Encoder(str(folder))
    assert "sentence-transformers" in encoder.description
    mean = Encoder(str(folder), pooling="mean").coherence(PROMPTS, RESPONSES)
    assert encoder.coherence(PROMPTS, RESPONSES) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "pooling", "says"),
    [
        (None, "max", "pooling is 'max'; it must be one of auto, mean, cls, pooler"),
        ("no/such/encoder", "mean", "cannot load the encoder no/such/encoder"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_named(folder, path, pooling, says):
    with pytest.raises(EvaluationError, match=says):
        Encoder(path or str(folder), pooling=pooling)
