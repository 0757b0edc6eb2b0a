"""The engine against the paper's algorithm on the same ids, with both times:

python examples/prove_it.py
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.reference import decode
from args_fast.tiny_pair import LM, RM

argparse.ArgumentParser(description=__doc__).parse_args()
decoder = ArgsDecoder.from_pretrained(LM, RM)
own = {"dtype": torch.float32}
lm = AutoModelForCausalLM.from_pretrained(LM, **own)
rm = AutoModelForSequenceClassification.from_pretrained(RM, **own)
config = DecodingConfig(k=10, w=1.5, max_new_tokens=32)
for question in (
    "How do I teach my spaniel to sit?",
    "Suggest a short walk.",
    "Tell me about Mars.",
):
    began = time.perf_counter()
    engine = decoder.chat(question, config)
    middle = time.perf_counter()
    # Algorithm 1 as printed: no cache, every candidate's whole text from scratch.
    naive = decode(lm, rm, engine.prompt_token_ids, config)
    ended = time.perf_counter()
    assert engine.token_ids == naive.token_ids
    times = f"{middle - began:.2f} s, naively {ended - middle:.2f} s"
    print(f"{len(engine.token_ids)} equal tokens; {times}: {engine.text}")
