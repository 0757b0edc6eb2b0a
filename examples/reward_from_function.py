"""A reward that is a function of the text: python examples/reward_from_function.py

It gets every candidate's whole response as a string, so any tokenizer and any rule will do.
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.rewards import Function
from args_fast.tiny_pair import LM


def short_words(prompts: list[str], responses: list[str]) -> list[float]:
    """Minus the mean length of the words: plain words score higher."""
    words = [response.split() or [""] for response in responses]
    return [-sum(map(len, each)) / len(each) for each in words]


argparse.ArgumentParser(description=__doc__).parse_args()
lm, tokenizer = AutoModelForCausalLM.from_pretrained(LM), AutoTokenizer.from_pretrained(LM)
decoder = ArgsDecoder(lm, Function(short_words), tokenizer=tokenizer)
for w in (0.0, 2.0):
    result = decoder.chat(
        "How do I teach my spaniel to sit?", DecodingConfig(w=w, max_new_tokens=32)
    )
    print(f"w = {w}: {result.text}")
