"""Two tokenizers of VOCABULARY tokens, with all that makes text hard to stream."""

import functools

import transformers as t
from tiny_models import VOCABULARY
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

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
    """As of Llama 2: a space is part of the word behind it and vanishes at the very beginning, and
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
