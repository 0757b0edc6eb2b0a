"""Contrastive search gives the tokens of the last transformers that had it."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_models import language_model, tokens
from transformers import AutoModelForCausalLM

from args_fast.eval.contrastive import contrastive_search

ROOT = Path(__file__).parents[2]
CASES = json.loads((Path(__file__).parent / "golden/contrastive_search.json").read_text())["cases"]


@cache
def load(folder):
    return AutoModelForCausalLM.from_pretrained(ROOT / folder, dtype=torch.float32).eval()


@torch.inference_mode()
def naive(model, prompt, k, alpha, count):
    """The definition, without a cache: one pass over the whole text for each candidate."""
    text = list(prompt)
    for _ in range(count):
        output = model(torch.tensor([text]), use_cache=False, output_hidden_states=True)
        probabilities = output.logits[0, -1].softmax(dim=-1)
        said = output.hidden_states[-1][0]
        scores = {}
        for candidate in probabilities.topk(k).indices.tolist():
            extended = torch.tensor([[*text, candidate]])
            passed = model(extended, use_cache=False, output_hidden_states=True)
            hidden = passed.hidden_states[-1][0, -1]
            likeness = torch.cosine_similarity(said, hidden[None], dim=-1).max()
            scores[candidate] = (1 - alpha) * probabilities[candidate] - alpha * likeness
        text.append(max(scores, key=scores.get))
    return text[len(prompt) :]


def until(count, eos=None):
    tokens = []

    def enough(token):
        tokens.append(token)
        return token == eos or len(tokens) == count

    return enough


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['model']}-k{case['k']}")
def test_equals_transformers_4(case):
    found = contrastive_search(
        load(case["model"]),
        [case["prompt"]],
        k=case["k"],
        alpha=case["alpha"],
        enough=[until(case["max_new_tokens"], case["eos"])],
    )
    assert found == [case["tokens"]]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize(("k", "alpha"), [(5, 0.6), (1, 0.6), (4, 0.0)])
def test_equals_its_definition(name, k, alpha):
    model, lengths = language_model(name), {9: 12, 3: 5, 14: 8}  # of prompts, of their responses
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]
    ends = [until(count) for count in lengths.values()]
    found = contrastive_search(model, prompts, k=k, alpha=alpha, enough=ends)
    assert found == [
        naive(model, prompt, k, alpha, count)
        for prompt, count in zip(prompts, lengths.values(), strict=True)
    ]
