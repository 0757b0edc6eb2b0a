"""The embedded pair's language model with its tokenizer."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from args_fast.tiny_pair import LM


@pytest.fixture(scope="session")
def pair():
    lm = AutoModelForCausalLM.from_pretrained(LM, dtype="float32").eval()
    return lm, AutoTokenizer.from_pretrained(LM, padding_side="left")
