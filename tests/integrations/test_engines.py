"""One engine per pair of models, kept as long as both of them, and no longer."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from tiny_models import language_model, reward_model, tokens
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.integrations import engines
from args_fast.integrations.transformers import reward_guided
from args_fast.rewards import Autoregressive, Classifier, Function, Head, Text
from args_fast.tiny_pair import RM

IDS = torch.tensor([tokens(9)])


def generate(lm, guided, **options):
    return lm.generate(IDS, custom_generate=guided, max_new_tokens=4, do_sample=False, **options)


def fresh():
    """A pair that no other test holds."""
    return copy.deepcopy(language_model()), copy.deepcopy(reward_model())


@pytest.fixture
def made(monkeypatch):
    """Weak references to every engine that is made."""
    decoders = []
    make = engines._make

    def noted(*args, **options):
        decoder = make(*args, **options)
        decoders.append(weakref.ref(decoder))
        return decoder

    monkeypatch.setattr(engines, "_make", noted)
    return decoders


def alive(decoders):
    gc.collect()
    return [reference for reference in decoders if reference() is not None]


def test_pair_has_one_engine(made):
    lm, rm = fresh()
    for k in (2, 5):  # a loop of its own for every call, as people write it
        generate(lm, reward_guided(rm, k=k))
    generate(lm, reward_guided(rm, k=2), repetition_penalty=1.2)
    assert len(made) == 1
    generate(lm, reward_guided(rm, max_batch_size=3))
    assert len(made) == 2
    assert len(alive(made)) == 1


@pytest.mark.parametrize("gone", ["lm", "rm"])
def test_engine_is_let_go_with_either_model(made, gone):
    pair = dict(zip(("lm", "rm"), fresh(), strict=True))
    generate(pair["lm"], reward_guided(pair["rm"]))
    assert len(alive(made)) == 1
    model = weakref.ref(pair.pop(gone))
    assert not alive(made)
    assert model() is None


@pytest.mark.parametrize(
    "wrap",
    [
        Classifier,
        lambda rm: {"one": rm},
        lambda rm: {"one": Classifier(rm), "two": Autoregressive(language_model("llama", seed=5))},
    ],
    ids=["a reward", "by name", "several"],
)
def test_engine_is_let_go_with_a_reward(made, wrap):
    lm, rm = fresh()
    reward = wrap(rm)
    first = generate(lm, reward_guided(reward))
    assert torch.equal(generate(lm, reward_guided(reward)), first)
    assert len(made) == 1
    del reward, rm
    assert not alive(made)


def test_loop_that_is_kept_keeps_its_reward_only(made):
    lm, rm = fresh()
    guided = reward_guided(rm)
    del rm
    generate(lm, guided)
    assert len(alive(made)) == 1
    del lm
    assert not alive(made)


def test_weights_that_change_are_the_engines(made):
    lm, rm = fresh()
    before = generate(lm, reward_guided(rm, w=3.0))
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(-1.0)
        rm.score.weight.mul_(-1.0)
    after = generate(lm, reward_guided(rm, w=3.0))
    again_lm, again_rm = copy.deepcopy(lm), copy.deepcopy(rm)
    assert torch.equal(generate(again_lm, reward_guided(again_rm, w=3.0)), after)
    assert not torch.equal(after, before)
    assert len(made) == 2


def test_models_are_as_they_were():
    lm, rm = fresh()
    lm.generation_config.repetition_penalty = 1.3
    logits, rewards = lm(IDS).logits, rm(IDS).logits
    generate(lm, reward_guided(rm))
    assert lm.generation_config.repetition_penalty == 1.3
    torch.testing.assert_close(lm(IDS).logits, logits)
    torch.testing.assert_close(rm(IDS).logits, rewards)


def test_threads_share_the_engine(made):
    lm, rm = fresh()
    guided, outputs = reward_guided(rm), []
    threads = [
        threading.Thread(target=lambda: outputs.append(generate(lm, guided))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert len(outputs) == 4


def text_reward():
    model = AutoModelForSequenceClassification.from_pretrained(RM, dtype="float32")
    return Text(model, AutoTokenizer.from_pretrained(RM))


def head():
    torch.manual_seed(0)
    return Head(torch.nn.Linear(192, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Function(lambda prompts, responses: [float(r.count("e")) for r in responses]),
        text_reward,
        head,
    ],
    ids=["function", "text", "head"],
)
def test_reward_of_every_kind(pair, make):
    lm, tokenizer = pair
    inputs = tokenizer("\n\nHuman: How do I grow basil?\n\nAssistant:", return_tensors="pt")
    reward = make()
    guided = reward_guided(reward, w=30.0, tokenizer=tokenizer)
    output = lm.generate(custom_generate=guided, max_new_tokens=8, do_sample=False, **inputs)
    decoder = ArgsDecoder(lm, make(), tokenizer=tokenizer)
    prompt = inputs["input_ids"][0].tolist()
    (expected,) = decoder.generate(prompt, DecodingConfig(w=30.0, max_new_tokens=8))
    assert output[0, len(prompt) :].tolist() == expected.token_ids
    plain = lm.generate(max_new_tokens=8, do_sample=False, **inputs)
    assert not torch.equal(plain, output)
