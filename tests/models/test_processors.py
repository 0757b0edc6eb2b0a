"""What generation_config asks of logits: named by default, obeyed as transformers obeys it."""

import copy
import warnings

import pytest
import torch
from refusals import refuses
from tiny_models import VOCABULARY, language_model, tokens
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from args_fast.errors import ConfigError
from args_fast.models.processors import check, for_request, rules

PROMPT = tokens(9)
NEW = 12


def model(**settings):
    """A language model whose generation_config holds nothing but these settings."""
    made = copy.deepcopy(language_model())
    made.generation_config.eos_token_id = None
    for name, value in settings.items():
        setattr(made.generation_config, name, value)
    return made


@torch.no_grad()
def greedy(model, choice, ends=()):
    """The likeliest tokens after processing, by a full pass for each."""
    process = for_request(model, choice, PROMPT, NEW, frozenset(ends))
    ids = list(PROMPT)
    while len(ids) < len(PROMPT) + NEW and ids[-1] not in ends:
        logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(int((logits if process is None else process(ids, logits)).argmax()))
    return ids[len(PROMPT) :]


def generated(model):
    asked = torch.tensor([PROMPT])
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
    return model.generate(asked, attention_mask=torch.ones_like(asked), **options)[
        0, len(PROMPT) :
    ].tolist()


FREE = greedy(model(), None)
SETTINGS = {
    "repetition_penalty": 1.5,
    "suppress_tokens": [FREE[0]],
    "begin_suppress_tokens": [FREE[0]],
    "bad_words_ids": [[FREE[1]], [FREE[2], FREE[3]]],
    "no_repeat_ngram_size": 1,
    "sequence_bias": [[[FREE[0]], -50.0], [[7], 1.5]],
    "min_new_tokens": 5,
    "min_length": len(PROMPT) + 4,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": (2, 3.0),
    "encoder_repetition_penalty": 2.0,
    "encoder_no_repeat_ngram_size": 1,
    "remove_invalid_values": True,
}
ENDS = {"min_new_tokens": [FREE[1]], "min_length": [FREE[1]]}
ENDS |= {"exponential_decay_length_penalty": [11]}
# They count from the beginning of the text, or guard against values that do not come up.
SAME = {"forced_bos_token_id", "remove_invalid_values"}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_rule_is_named_and_obeyed_as_generate_obeys_it(name):
    ends = ENDS.get(name, [])
    made = model(**{name: SETTINGS[name]}, eos_token_id=ends or None)
    assert rules(made) == [name]
    with pytest.warns(UserWarning, match=name) as caught:
        assert check(made, None) is None
    assert len(caught) == 1
    assert 'logits_processor="model"' in str(caught[0].message)
    obeyed = greedy(made, check(made, "model"), ends)
    assert obeyed == generated(made)
    if name not in SAME:
        assert obeyed != greedy(made, None, ends)


def test_rules_together_are_obeyed_and_named_in_one_warning():
    both = ("repetition_penalty", "suppress_tokens", "no_repeat_ngram_size")
    made = model(**{name: SETTINGS[name] for name in both})
    with pytest.warns(UserWarning, match="generation_config") as caught:
        check(made, None)
    (message,) = {str(each.message) for each in caught}
    assert all(name in message for name in both)
    assert greedy(made, "model") == generated(made) != FREE


def test_rules_of_sampling_are_never_taken():
    made = model(temperature=0.1, top_k=1, top_p=0.1, min_p=0.5, typical_p=0.2, do_sample=True)
    made.generation_config.renormalize_logits = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(made, None)
    assert rules(made) == []
    for choice in (None, "model"):
        assert for_request(made, choice, PROMPT, 1, frozenset()) is None


def test_ends_of_the_request_count_and_not_the_models():
    made = model(min_new_tokens=5, eos_token_id=[FREE[0]])
    assert greedy(made, "model", [FREE[2]])[:2] == FREE[:2]
    assert FREE[2] not in greedy(made, "model", [FREE[2]])[:5]


def test_the_models_own_config_stays_as_it_is():
    made = model(repetition_penalty=1.5, bad_words_ids=[[7]], temperature=0.3, do_sample=True)
    before = made.generation_config.to_dict()
    rules(made)
    greedy(made, "model")
    assert made.generation_config.to_dict() == before


def test_processors_of_ones_own():
    made = model(repetition_penalty=1.5)
    own = LogitsProcessorList([SuppressTokensLogitsProcessor([FREE[0]])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for choice in (own, list(own)):
            assert greedy(made, check(made, choice)) == generated(model(suppress_tokens=[FREE[0]]))
    empty = check(made, [])
    assert for_request(made, empty, PROMPT, 1, frozenset()) is None


def test_processing_leaves_the_logits_alone():
    made = model(suppress_tokens=[3])
    logits = torch.zeros(VOCABULARY, dtype=torch.bfloat16)
    found = for_request(made, "model", PROMPT, 1, frozenset())(PROMPT, logits)
    assert found.dtype == torch.float32
    assert found[3] == -torch.inf
    assert not logits.any()


@pytest.mark.parametrize("choice", ["models", 5, {"model"}, [5]])
def test_another_choice_is_refused(choice):
    with refuses(ConfigError, repr(choice), "'model'", "LogitsProcessorList"):
        check(model(), choice)


def test_guidance_needs_a_pass_and_is_refused():
    made = model(guidance_scale=1.5)
    assert rules(made) == ["guidance_scale"]
    with refuses(ConfigError, "guidance_scale", "second pass"):
        check(made, "model")
