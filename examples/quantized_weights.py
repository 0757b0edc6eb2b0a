"""How many choices survive weights of 8 bits: python examples/quantized_weights.py

Before every token of what the pair decodes, the pair with int8 weights chooses the next one. Put
your own models for LM and RM; on a GPU "fp8" works too (both kinds there need torchao).
"""

import argparse

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.quantization import weight_bytes
from args_fast.tiny_pair import LM, RM

argparse.ArgumentParser(description=__doc__).parse_args()
questions = ["How do I teach my spaniel to sit?", "How can I clean the sofa with baking soda?"]
config = DecodingConfig(k=10, w=1.5, max_new_tokens=32)
single = DecodingConfig(k=10, w=1.5, max_new_tokens=1)

plain = ArgsDecoder.from_pretrained(LM, RM)
prompts = [plain.tokenizer(question).input_ids for question in questions]
texts = [result.token_ids for result in plain.generate(prompts, config)]
# Each token's place is a prompt of its own, so that one other choice does not change the next.
pairs = list(zip(prompts, texts, strict=True))
places = [prompt + text[:t] for prompt, text in pairs for t in range(len(text))]
tokens = [token for text in texts for token in text]

for lm, rm in ((None, None), ("int8", None), (None, "int8"), ("int8", "int8")):
    pair = ArgsDecoder.from_pretrained(LM, RM, lm_quantization=lm, rm_quantization=rm)
    chosen = [result.token_ids[0] for result in pair.generate(places, single)]
    equal = sum(a == b for a, b in zip(chosen, tokens, strict=True)) / len(tokens)
    size = sum(map(weight_bytes, (pair.language_model, pair.reward_model))) / 1e6
    print(f"lm {lm}, rm {rm}: {size:.1f} MB of weights, {equal:.1%} equal choices")
