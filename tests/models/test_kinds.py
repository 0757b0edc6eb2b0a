"""What is passed in a model's place: each is refused with what to pass."""

import copy
import pickle

import pytest
import torch
from refusals import refuses
from tiny_models import language_model, reward_model
from transformers import pipeline
from vocabularies import byte_level

from args_fast import ArgsDecoder
from args_fast.errors import DecoderBusyError, UnsupportedModelError


def a_pipeline():
    return pipeline("text-generation", model=language_model(), tokenizer=byte_level())


def quantized(model):
    return torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8
    )


LANGUAGE_MODELS = {
    "a path": (lambda: "some/path", "from_pretrained"),
    "a pipeline": (a_pipeline, "pipeline.model"),
    "a compiled model": (lambda: torch.compile(language_model()), "model._orig_mod"),
    "nothing": (lambda: None, "Load one with transformers"),
    "a quantized model": (lambda: quantized(language_model()), "lm_quantization='int8'"),
}
REWARD_MODELS = {
    "several": (lambda: [reward_model(), reward_model()], "rewards.Mixture"),
    "a function": (lambda: lambda prompt, responses: [0.0], "rewards.Function(function)"),
    "a wrapper": (lambda: torch.nn.DataParallel(reward_model()), "model.module"),
    "a quantized model": (lambda: quantized(reward_model()), "rm_quantization='int8'"),
    "a module": (lambda: torch.nn.Linear(3, 1), "Load one with transformers"),
}


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_in_place_of_a_language_model(case):
    made, said = LANGUAGE_MODELS[case]
    with refuses(UnsupportedModelError, "the language model", said):
        ArgsDecoder(made(), reward_model())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REWARD_MODELS)
def test_in_place_of_a_reward_model(case):
    made, said = REWARD_MODELS[case]
    with refuses(UnsupportedModelError, "the reward model", said):
        ArgsDecoder(language_model(), made())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_decoder_is_not_copied(copied):
    with refuses(DecoderBusyError, "cannot be copied or pickled", "in each process"):
        copied(ArgsDecoder(language_model(), reward_model()))
