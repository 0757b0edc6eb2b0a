"""Every kind of reward in one engine, through everything that a request may meet: each gets
the tokens that it gets alone."""

import asyncio

import made_up_rewards
import pytest
import torch
from encoders import decoder_classifier, encoder
from second_models import reward_lm, table
from tiny_models import VOCABULARY, language_model, reward_model, tokens
from vocabularies import byte_level, unigram, wordpiece

from args_fast import ArgsDecoder, AsyncArgsDecoder, DecodingConfig
from args_fast.rewards import (
    Autoregressive,
    Classifier,
    Function,
    Head,
    Mixture,
    Text,
    Vocabulary,
)

PROMPT = tokens(17, seed=3)


def vowels(prompts, responses):
    return [sum(x in "aeiou" for x in r) / max(1, len(r)) for r in responses]


class Choosy(Classifier):
    """Does not know a third of the ids."""

    def known_ids(self):
        return torch.arange(VOCABULARY) % 3 > 0


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = reward_model()
    second = Autoregressive(reward_lm("opt"), name="second")
    rewards = {
        "classifier": Classifier(model),
        "closings": Classifier(reward_model("opt"), closing_ids=[4, 5]),
        "choosy": Choosy(reward_model("opt")),
        "head": Head(torch.nn.Linear(32, 1)),
        "text": Text(decoder_classifier("gpt2"), unigram()),
        "encoder": Text(encoder("bert"), wordpiece()),
        "function": Function(vowels),
        "second": second,
        "table": Vocabulary(table()),
        "mixture": Mixture([(model, 0.5), (second, 1.0)], names=["part", "second"]),
    }
    return ArgsDecoder(language_model(), rewards, tokenizer=byte_level(), max_batch_size=4)


KINDS = ["classifier", "closings", "choosy", "head", "text", "encoder", "function"]
KINDS += ["second", "table", "mixture"]


def config(kind, **options):
    defaults = {"k": 4, "w": 2.0, "max_new_tokens": 7, "eos_token_ids": []}
    return DecodingConfig(**defaults | options, reward=kind)


@pytest.fixture(scope="module")
def alone(pair):
    """The tokens that each kind gives by itself."""
    return {kind: pair.generate(PROMPT, config(kind))[0] for kind in KINDS}


def test_kinds_differ(alone):
    assert len({tuple(result.token_ids) for result in alone.values()}) > len(KINDS) // 2


def test_all_kinds_in_one_batch(pair, alone):
    results = pair.generate([PROMPT] * len(KINDS), [config(kind) for kind in KINDS])
    for kind, result in zip(KINDS, results, strict=True):
        assert result.token_ids == alone[kind].token_ids
        assert result.rewards == pytest.approx(alone[kind].rewards, abs=1e-4)
    assert pair.engine.pool.pages_in_use == 0


@pytest.mark.parametrize("kind", KINDS)
def test_streams_and_cancelled_streams(pair, alone, kind):
    stream = pair.stream(PROMPT, config(kind))
    other = pair.stream(PROMPT, config(kind))
    next(other)
    assert [token.token_id for token in stream] == alone[kind].token_ids
    other.close()
    assert not pair.engine.busy
    assert pair.engine.pool.pages_in_use == 0


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_their_seeds(pair, kind):
    options = {"temperature": 0.8, "seed": 4}
    together = pair.generate(PROMPT, config(kind, num_return_sequences=3, **options))
    for i, sample in enumerate(together):
        (single,) = pair.generate(PROMPT, config(kind, temperature=0.8, seed=4 + i))
        assert sample.token_ids == single.token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_request_resumes(pair, alone, kind):
    """As one does that was preempted: its pages are gone, and it is filled again."""
    (request,) = pair.requests(PROMPT, config(kind))
    pair.engine.submit(request)
    while len(request.tokens) < 3:
        pair.engine.step()
    pair.engine.pause(request)
    assert not request.pages
    pair.engine.submit(request)
    while pair.engine.busy:
        pair.engine.step()
    assert request.generation().token_ids == alone[kind].token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_shares_its_pages(pair, alone, kind):
    pair.engine.hold_prefixes = True
    try:
        before = pair.engine.stats.shared_tokens
        for _ in range(2):
            (result,) = pair.generate(PROMPT, config(kind))
            assert result.token_ids == alone[kind].token_ids
        assert pair.engine.stats.shared_tokens >= before + 16
    finally:
        pair.engine.hold_prefixes = False
        pair.engine.scheduler.evict_all()


def test_many_requests_in_bounded_memory(pair, alone):
    requests = [(PROMPT, config(kind)) for kind in KINDS for _ in range(2)]
    for index, result in pair.complete(iter(requests)):
        assert result.token_ids == alone[KINDS[index // 2]].token_ids


def test_async_requests_of_every_kind(pair, alone):
    async def all_of_them():
        async with AsyncArgsDecoder(pair) as decoder:
            return await asyncio.gather(*(decoder.generate(PROMPT, config(kind)) for kind in KINDS))

    for kind, result in zip(KINDS, asyncio.run(all_of_them()), strict=True):
        result = result[0] if isinstance(result, list) else result
        assert result.token_ids == alone[kind].token_ids


def test_token_rewards_are_of_all_rewards_with_their_weights(pair, alone):
    """decoder.token_rewards has no config, so it is the sum of all that were given."""
    text = alone["classifier"].token_ids
    total = [0.0] * len(text)
    for name, weight in pair.requests(PROMPT, config(None))[0].weights.items():
        (request,) = pair.requests(PROMPT, config({name: weight}))
        along = pair.engine.rewards_along(request, text)
        total = [a + b for a, b in zip(total, along, strict=True)]
    assert pair.token_rewards(PROMPT, text) == pytest.approx(total, abs=1e-4)
    assert pair.rewards(PROMPT, [text]) == pytest.approx(total[-1:], abs=1e-4)


def test_ids_that_a_reward_does_not_know_are_counted(pair):
    unknown = len(range(0, VOCABULARY, 3))
    assert pair.engine.stats.unknown_ids == unknown
    plain = ArgsDecoder(language_model(), made_up_rewards.OnHost())
    assert plain.engine.stats.unknown_ids == 0
