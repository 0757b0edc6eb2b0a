"""``every`` and ``certain``: steps without a reward, against a naive decoder that skips it in
the same steps; and how far from ARGS that is."""

import math

import made_up_rewards
import oracle
import pytest
from encoders import decoder_classifier, encoder, own_forward
from refusals import refuses
from second_models import log_probability, reward_lm
from tiny_models import decoder, language_model, reward_model, tokens
from traffic import MARGIN, NAIVE, naive_reward, run, scheduler, sequence
from vocabularies import byte_level, unigram, wordpiece

from args_fast import ArgsDecoder, DecodingConfig, reference
from args_fast.errors import ConfigError, PromptError
from args_fast.rewards import Autoregressive, Classifier, Text

KINDS = {
    "classifier": {"reward": 1.0},
    "weighted": {"reward": 0.5},
    "own ids, closing ids": {"own": 1.0},
    "hidden": {"hidden": 1.0},
    "host": {"host": 1.0},
    "second": {"second": 1.0},
    "text": {"text": 1.0},
    "encoder": {"encoder": 1.0},
    "mixture": {"reward": 1.0, "own": 0.5, "second": -0.5, "host": 1.0},
}
SKIPS = ({"every": 2}, {"every": 3}, {"certain": 0.25}, {"every": 2, "certain": 0.3})


PROMPT = 14  # ids


def decoded(text):
    """Prompt and response as text readers get them: the response without half a character."""
    prompt, whole = (
        byte_level().decode(list(ids), skip_special_tokens=True) for ids in (text[:PROMPT], text)
    )
    return prompt + whole[len(prompt) :].rstrip("\ufffd")


@pytest.fixture(scope="module")
def rewards():
    made = {
        "reward": Classifier(reward_model()),
        "own": made_up_rewards.OwnIds(reward_model("opt"), name="own"),
        "hidden": made_up_rewards.OnHidden(),
        "host": made_up_rewards.OnHost(poisons=False),
        "second": Autoregressive(reward_lm("opt"), name="second"),
        "text": Text(decoder_classifier("gpt2"), unigram(), name="text"),
        "encoder": Text(encoder("bert"), wordpiece(), name="encoder"),
    }
    for reward in made.values():
        reward.attach(decoder().engine.lm, byte_level())
    return made


@pytest.fixture(autouse=True)
def naive(monkeypatch):
    text = lambda ids: own_forward(decoder_classifier("gpt2"), unigram(), decoded(ids))  # noqa: E731
    of_encoder = lambda ids: own_forward(encoder("bert"), wordpiece(), decoded(ids))  # noqa: E731
    for name, function in {
        "second": log_probability(reward_lm("opt")),
        "text": text,
        "encoder": of_encoder,
    }.items():
        monkeypatch.setitem(NAIVE, name, function)


def expected(one):
    c = one.config
    decode = oracle.decode(
        language_model(),
        naive_reward(tuple(one.weights.items())),
        one.prompt,
        k=c.k,
        w=c.w,
        steps=c.max_new_tokens,
        temperature=c.temperature,
        seed=c.seed,
        every=c.every,
        certain=c.certain,
    )
    assert decode.margin > MARGIN
    return decode


def check_against_oracle(one):
    assert one.error is None, one.error
    naive, result = expected(one), one.generation()
    assert result.token_ids == naive.tokens
    for field in ("logprobs", "rewards", "scores"):
        assert getattr(result, field) == pytest.approx(getattr(naive, field), abs=1e-4, nan_ok=True)
    share = sum(math.isnan(r) for r in naive.rewards) / len(naive.rewards)
    assert result.skipped == (pytest.approx(share) if one.config.skips else None)
    return result


def made(weights, prompt_seed, **options):
    return sequence(
        tokens(PROMPT, seed=prompt_seed), weights=weights, k=5, max_new_tokens=12, **options
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_skipped_steps_are_those_of_the_oracle(rewards, kind, temperature):
    engine = scheduler(rewards=rewards, pages=60)
    options = {"temperature": temperature, "seed": 5}
    alone = [made(KINDS[kind], i, **skip, **options) for i, skip in enumerate(SKIPS)]
    for one in alone:
        run(engine, one)
        check_against_oracle(one)
    # Together, with one that never skips: each skips in steps of its own.
    together = [made(KINDS[kind], i, **skip, **options) for i, skip in enumerate(SKIPS)]
    together.append(made(KINDS[kind], 9, **options))
    run(engine, *together)
    for one in together:
        check_against_oracle(one)
    skipped = [one.generation().skipped for one in alone]
    assert skipped[:2] == [pytest.approx(1 / 2), pytest.approx(2 / 3)]
    assert all(0 < share < 1 for share in skipped)


def test_a_reward_is_not_run_where_all_skip(rewards, monkeypatch):
    calls = []
    monkeypatch.setattr(
        made_up_rewards, "liking", lambda ids, f=made_up_rewards.liking: calls.append(1) or f(ids)
    )
    run(scheduler(rewards=rewards, pages=40), made({"host": 1.0}, 0, every=4))
    assert len(calls) == 3 * 5


@pytest.mark.parametrize("kind", ["classifier", "own ids, closing ids", "second", "mixture"])
def test_pages_that_lag_are_not_shared_before_they_are_filled(rewards, kind):
    engine = scheduler(rewards=rewards, pages=80)
    engine.hold_prefixes = True
    weights = KINDS[kind]
    long = {"weights": weights, "k": 4, "max_new_tokens": 24}
    behind = sequence(tokens(14), every=23, **long)
    run(engine, behind)
    check_against_oracle(behind)
    # A prompt that is its text shares its pages, those only that hold the reward's keys too.
    again = sequence(behind.ids[:36], weights=weights, k=4, max_new_tokens=4)
    run(engine, again)
    check_against_oracle(again)
    engine.scheduler.evict_all()


def test_preemption_while_the_reward_lags(rewards):
    engine = scheduler(rewards=rewards, pages=9, rows=4)
    ones = [
        sequence(tokens(14, seed=i), weights=KINDS["mixture"], k=4, max_new_tokens=40, every=5)
        for i in range(4)
    ]
    run(engine, *ones)
    assert engine.stats.preemptions > 0
    for one in ones:
        check_against_oracle(one)


def test_candidates_of_a_skipped_step_have_no_reward():
    pair = ArgsDecoder(language_model(), reward_model())
    config = DecodingConfig(
        k=4, max_new_tokens=6, eos_token_ids=[], every=2, return_candidates=True
    )
    (result,) = pair.generate(tokens(9), config)
    for i, step in enumerate(result.candidates):
        assert all(math.isnan(c.reward) == (i % 2 == 1) for c in step)
        assert math.isnan(result.rewards[i]) == (i % 2 == 1)
    assert result.as_json()["skipped"] == 0.5


@pytest.mark.parametrize("skip", [{}, *SKIPS])
def test_the_reference_skips_the_same_steps(skip):
    config = DecodingConfig(k=5, max_new_tokens=12, eos_token_ids=[], **skip)
    (result,) = decoder().generate(tokens(9), config)
    naive = reference.decode(language_model(), reward_model(), tokens(9), config)
    assert naive.token_ids == result.token_ids
    assert naive.skipped == result.skipped


def test_never_skipping_is_args(rewards):
    (exact,) = decoder().generate(tokens(9), DecodingConfig(max_new_tokens=9))
    config = DecodingConfig(max_new_tokens=9, certain=1.0)
    (result,) = decoder().generate(tokens(9), config)
    assert result.token_ids == exact.token_ids
    assert result.skipped == 0
    assert exact.skipped is None


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_agreement_is_the_share_that_args_would_choose(temperature):
    options = {"k": 5, "w": 3.0, "temperature": temperature, "seed": 3}
    config = DecodingConfig(max_new_tokens=12, eos_token_ids=[], every=3, **options)
    (result,) = decoder().generate(tokens(9), config)
    text, choices = [*tokens(9), *result.token_ids], []
    for i in range(12):
        noise = config.noise()[i].numpy()
        one = oracle.decode(language_model(), reward_model(), text[: 9 + i], k=5, w=3.0, steps=1)
        assert one.margin > MARGIN
        if temperature is None:
            choices.append(one.tokens[0])
        else:
            scores = _scores(text[: 9 + i], 5, 3.0)
            choices.append(max(scores, key=lambda s: s[1] / temperature + noise[s[2]])[0])
    share = sum(a == b for a, b in zip(choices, result.token_ids, strict=True)) / 12
    assert decoder().agreement(tokens(9), result.token_ids, config) == pytest.approx(share)
    assert share < 1
    (exact,) = decoder().generate(tokens(9), DecodingConfig(max_new_tokens=12, **options))
    assert decoder().agreement(tokens(9), exact.token_ids, config) == 1
    assert not decoder().engine.busy


def _scores(text, k, w):
    """(token, s, place) of each candidate."""
    import torch

    with torch.no_grad():
        logprobs = language_model()(torch.tensor([text])).logits[0, -1].log_softmax(0)
    values, ids = logprobs.topk(k)
    return [
        (v, lp + w * oracle.reward(reward_model(), [*text, v]), i)
        for i, (v, lp) in enumerate(zip(ids.tolist(), values.tolist(), strict=True))
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 1.5}, "every is 1.5"),
        ({"certain": 0}, "certain is 0"),
        ({"certain": 1.1}, "never to skip"),
    ],
)
def test_bad_values_are_refused(options, words):
    with refuses(ConfigError, words):
        DecodingConfig(**options)


def test_agreement_needs_a_text():
    with refuses(PromptError, "empty"):
        decoder().agreement(tokens(3), [], DecodingConfig())
