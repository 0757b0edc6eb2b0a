"""Models that give one value per token of the vocabulary, and their rewards, naively."""

import copy
import functools

import torch
import transformers as t
from tiny_models import CONFIGS, attention, language_model


@functools.cache
def reward_lm(name="llama"):
    return language_model(name, seed=7)


@functools.cache
def table(name="llama"):
    """One value per token of the vocabulary, by a head of its own."""
    torch.manual_seed(8)
    config = copy.deepcopy(CONFIGS[name]())
    config.num_labels = config.vocab_size
    return t.AutoModelForTokenClassification.from_config(config, **attention(name)).eval()


@torch.no_grad()
def outputs(model, text):
    return model(input_ids=torch.tensor([text[:-1]])).logits[0, -1].double()


def log_probability(model):
    return lambda text: outputs(model, text).log_softmax(0)[text[-1]].item()


def value(model):
    return lambda text: outputs(model, text)[text[-1]].item()
