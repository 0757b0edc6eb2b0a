"""What the soak serves: the embedded language model and rewards of every cost, by name."""

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from args_fast import ArgsDecoder
from args_fast.rewards import Autoregressive, Classifier, Function, Text
from args_fast.tiny_pair import LM, RM

NAME = "soak"


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward on the host: short answers, and commas."""
    return [
        response.count(",") / 4 - len(response) / 200
        for _, response in zip(prompts, responses, strict=True)
    ]


def make_decoder(max_batch_size: int = 8) -> ArgsDecoder:
    """The pair with four rewards; its caches are small, so that requests preempt each other."""
    lm = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32)
    rm = AutoModelForSequenceClassification.from_pretrained(RM, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(LM)
    rewards = {
        "helpful": Classifier(rm),
        "text": Text(rm, AutoTokenizer.from_pretrained(RM)),
        "brief": Function(brevity),
        "fluent": Autoregressive(lm),
    }
    return ArgsDecoder(
        lm, rewards, tokenizer=tokenizer, max_batch_size=max_batch_size, cache_bytes=2**24
    )
