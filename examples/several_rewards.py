"""Two rewards, weighted per request: python examples/several_rewards.py

A reward model and a function guide together; each request says with which weights.
"""

import argparse

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.rewards import Function
from args_fast.tiny_pair import LM, RM


def brief(prompts: list[str], responses: list[str]) -> list[float]:
    """Minus one for every twenty characters."""
    return [-len(response) / 20 for response in responses]


argparse.ArgumentParser(description=__doc__).parse_args()
rewards = {
    "helpful": AutoModelForSequenceClassification.from_pretrained(RM),
    "brief": Function(brief),
}
lm, tokenizer = AutoModelForCausalLM.from_pretrained(LM), AutoTokenizer.from_pretrained(LM)
decoder = ArgsDecoder(lm, rewards, tokenizer=tokenizer)
for weights in ({"helpful": 1.0}, {"helpful": 1.0, "brief": 0.5}, {"brief": 3.0}):
    config = DecodingConfig(reward=weights, max_new_tokens=32)
    result = decoder.chat("How do I teach my spaniel to sit?", config)
    print(f"{weights}: {result.text}")
