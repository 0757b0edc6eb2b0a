"""What a step costs with each kind of reward, against the branched classifier.

    python bench/rewards_cost.py

Rewards of OPT-125M's shape in float32, k = 10, a prompt of 512 tokens, and a language model so
small that the step is the reward's. The rewards' weights are random, as speed does not depend on
what they say; the language model is the embedded one, because what a text reward has to read again
depends on the text. The kinds take turns, so that a busy moment meets all of them; a step is what
one more token takes.
"""

import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, OPTConfig
from transformers import AutoModelForSequenceClassification as AutoClassifier
from transformers.utils import logging

from args_fast import ArgsDecoder, DecodingConfig, tiny_pair
from args_fast.rewards import Classifier, Reward, Text

PROMPT, K, ROUNDS = 512, 10, 3
STEPS = {"Text, an encoder": 2}  # tokens of a measurement; those of other kinds are 16
SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_labels": 1,
}


def rewards(tokenizer: Any) -> dict[str, tuple[Reward, str]]:
    """Each kind with its rows per step."""
    torch.manual_seed(0)
    opt = OPTConfig(**SHAPE)
    bert = BertConfig(**SHAPE, vocab_size=len(tokenizer), max_position_embeddings=2048)
    model, encoder = (AutoClassifier.from_config(config).eval() for config in (opt, bert))
    return {
        "Classifier": (Classifier(model), f"{K}"),
        "Classifier, 2 closing ids": (Classifier(model, closing_ids=[4, 5]), f"{3 * K}"),
        "Text, LM's own tokenizer": (Text(model, tokenizer), f"{K}, or more"),
        "Text, an encoder": (Text(encoder, tokenizer), f"{K} texts"),
    }


def main(rounds: int = ROUNDS) -> dict[str, float]:
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.LM)
    lm = AutoModelForCausalLM.from_pretrained(tiny_pair.LM, max_position_embeddings=2 * PROMPT)
    made = rewards(tokenizer)
    pairs = {
        name: ArgsDecoder(lm, reward, tokenizer=tokenizer, max_batch_size=1)
        for name, (reward, _) in made.items()
    }
    prompt = tokenizer("The sea is wide, and the birds over it are many. " * PROMPT).input_ids

    def seconds(name: str, tokens: int) -> float:
        config = DecodingConfig(k=K, max_new_tokens=tokens, eos_token_ids=[])
        began = time.perf_counter()
        pairs[name].generate([prompt[:PROMPT]], config)
        return time.perf_counter() - began

    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds + 1):
        for name in made:
            tokens = STEPS.get(name, 16)
            times[name].append((seconds(name, tokens + 1) - seconds(name, 1)) / tokens)
    step = {name: statistics.median(measured[1:]) for name, measured in times.items()}  # 0: warm-up
    print(f"{'kind':27}{'rows':>12}{'ms':>9}{'x':>7}{'weights, MB':>13}{'K/V, kB/token':>15}")
    layout = made["Classifier"][0].layout  # of every decoder here
    assert layout is not None
    for name, (reward, rows) in made.items():
        weights = sum(w.nbytes for w in reward.weights()) / 1e6
        stores = reward.layout is not None or getattr(reward, "cached", False)
        stored = layout.bytes_per_token / 1e3 if stores else 0
        figures = f"{step[name] * 1e3:9.1f}{step[name] / step['Classifier']:7.2f}"
        print(f"{name:27}{rows:>12}{figures}{weights:13.0f}{stored:15.1f}")
    return step


if __name__ == "__main__":
    main()
