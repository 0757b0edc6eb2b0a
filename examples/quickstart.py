"""Greedy decoding and ARGS on one question: python examples/quickstart.py

The embedded pair is tiny; with args_fast.smollm2 (see the README) the models are real.
"""

import argparse

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.tiny_pair import LM, RM

argparse.ArgumentParser(description=__doc__).parse_args()
decoder = ArgsDecoder.from_pretrained(LM, RM)
messages = [{"role": "user", "content": "How can I clean the sofa with baking soda?"}]

greedy = decoder.chat(messages, DecodingConfig(k=1, max_new_tokens=48))
guided = decoder.chat(messages, DecodingConfig(k=10, w=1.5, max_new_tokens=48))
(reward_of_greedy,) = decoder.rewards([messages], [greedy.token_ids])
print(f"greedy ({reward_of_greedy:+.2f}): {greedy.text}")
print(f"ARGS   ({guided.rewards[-1]:+.2f}): {guided.text}")
