"""Text, Vocabulary and the like in 16 bits: their rewards are as near to a float64 pass of the same
weights as the model's own forward is. Equality of tokens is claimed in float32 only."""

import copy

import pytest
import torch
from encoders import decoder_classifier, encoder
from second_models import reward_lm, table
from tiny_models import language_model, tokens
from vocabularies import byte_level, unigram, wordpiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.rewards import Autoregressive, Text, Vocabulary

MODELS = {
    "text, a decoder": (decoder_classifier("gpt2"), unigram),
    "text, an encoder": (encoder("bert"), wordpiece),
    "autoregressive": (reward_lm("opt"), None),
    "vocabulary": (table(), None),
}
KINDS = {"autoregressive": Autoregressive, "vocabulary": Vocabulary}
STEPS = 8


def outputs(model, kind, ids, tokenizer):
    """r of a text by the model's own forward alone, in the model's type."""
    with torch.no_grad():
        if tokenizer is None:
            logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0, -1]
            wide = logits if logits.dtype == torch.float64 else logits.float()
            values = wide.log_softmax(0) if kind == "autoregressive" else wide
            return values[ids[-1]].item()
        prompt, whole = (byte_level().decode(x, skip_special_tokens=True) for x in (ids[:9], ids))
        text = prompt + whole[len(prompt) :].rstrip("\ufffd")
        inputs = tokenizer(text, return_tensors="pt")
        if model.config.model_type != "bert":
            inputs.pop("token_type_ids", None)
        model.config.pad_token_id = None
        return model(**inputs).logits[0, 0].item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_rewards_are_as_near_as_the_models_own(kind, dtype):
    original, make = MODELS[kind]
    half = copy.deepcopy(original).to(dtype)
    wide = copy.deepcopy(half).double()
    tokenizer = None if make is None else make()
    reward = KINDS[kind](half) if tokenizer is None else Text(half, tokenizer)
    pair = ArgsDecoder(language_model(), reward, tokenizer=byte_level())
    config = DecodingConfig(k=5, w=1.0, max_new_tokens=STEPS, eos_token_ids=[])
    (result,) = pair.generate(tokens(9), config)
    text = [*tokens(9), *result.token_ids]
    alone = copy.deepcopy(original).to(dtype)
    errors, own_errors = [], []
    for i, r in enumerate(result.rewards):
        ids = text[: 10 + i]
        exact = outputs(wide, kind, ids, tokenizer)
        errors.append(abs(r - exact))
        own_errors.append(abs(outputs(alone, kind, ids, tokenizer) - exact))
    along = pair.token_rewards(tokens(9), result.token_ids)
    scale = max(1.0, *(abs(r) for r in result.rewards))
    rounding = torch.finfo(dtype).eps * scale
    assert max(errors) <= 3 * max(own_errors) + 4 * rounding
    assert along == pytest.approx(result.rewards, abs=3 * max(own_errors) + 4 * rounding)
