"""Tokenizers of VOCABULARY tokens: two with all that makes text hard to stream, and two more that
reward models have."""

import functools

import transformers as t
from tiny_models import VOCABULARY
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece

SPECIAL = ["<pad>", "<s>", "</s>"]


@functools.cache
def byte_level():
    """As of GPT-2: the bytes of é, 你 and 🙂 are tokens of their own, and "ab" merges."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = []
    for character in "\n .,abcdefghijklmnopqrstuvwxyzABCDEFGHé你🙂ß":
        for byte in split.pre_tokenize_str(character)[0][0]:
            if byte not in pieces:
                pieces.append(byte)
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("Ġ", "a"), ("Ġa", "b")]
    pieces += ["".join(pair) for pair in merges]
    return _tokenizer(pieces, merges, split, decoders.ByteLevel())


@functools.cache
def sentencepiece():
    """As of Llama 2: a space is part of the word after it and vanishes at the very beginning, and
    what is no piece falls back to bytes."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz.,!?", *(f"<0x{b:02X}>" for b in "é你🙂ß".encode())]
    merges = [("▁", letter) for letter in "abcdefgh"] + [("a", "b"), ("▁a", "b")]
    pieces = list(dict.fromkeys([*pieces, *("".join(pair) for pair in merges)]))
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return _tokenizer(pieces, merges, spaces, decoder, byte_fallback=True)


@functools.cache
def unigram():
    """As of T5 or XLM-R: the likeliest pieces, whichever they are; a space before every text, and
    bytes for what is not a piece."""
    letters = "abcdefghijklmnopqrstuvwxyz.,!?"
    pieces = [("▁", -2.0), *((letter, -4.0) for letter in letters)]
    pieces += [("▁a", -3.0), ("ab", -3.5), ("abc", -3.6), ("▁the", -3.0), ("cd", -3.2)]
    pieces += [(f"<0x{b:02X}>", -9.0) for b in "é你🙂".encode()]
    fill = [(f"<unused{i}>", -30.0) for i in range(VOCABULARY - len(SPECIAL) - 1 - len(pieces))]
    special = [*SPECIAL[:1], "<unk>", *SPECIAL[1:]]
    raw = Tokenizer(
        Unigram([*((s, 0.0) for s in special), *pieces, *fill], unk_id=1, byte_fallback=True)
    )
    raw.add_special_tokens([AddedToken(token, special=True) for token in special])
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    assert raw.get_vocab_size() == VOCABULARY
    return t.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )


@functools.cache
def wordpiece():
    """As of BERT: lower case, words apart from their continuations, no way back to the text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"##{x}" for x in "abcdefghilmnorstuy"), *".,!?'", "ab", "##cd"]
    pieces += [f"[unused{i}]" for i in range(VOCABULARY - len(special) - len(pieces))]
    vocabulary = {piece: i for i, piece in enumerate([*special, *pieces])}
    assert len(vocabulary) == VOCABULARY
    raw = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    raw.add_special_tokens([AddedToken(token, special=True) for token in special])
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def _tokenizer(pieces, merges, split, decoder, **options):
    fill = [f"<unused{i}>" for i in range(VOCABULARY - len(SPECIAL) - len(pieces))]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *pieces, *fill])}
    assert len(vocabulary) == VOCABULARY
    raw = Tokenizer(BPE(vocabulary, merges, **options))
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    raw.pre_tokenizer, raw.decoder = split, decoder
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
