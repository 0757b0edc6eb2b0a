"""Functions of prompt and response as rewards: what they are given, and what their faults end."""

import asyncio
import math
import threading
import time

import oracle
import pytest
from refusals import refuses
from tiny_models import decoder, language_model, tokens
from traffic import run, scheduler, sequence
from vocabularies import byte_level, sentencepiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, RewardError
from args_fast.rewards import Exchange, Function


def vowels(prompts, responses):
    """The share of vowels in the whole text."""
    texts = [p + r for p, r in zip(prompts, responses, strict=True)]
    return [sum(x in "aeiou" for x in text) / max(1, len(text)) for text in texts]


async def vowels_later(prompts, responses):
    await asyncio.sleep(0)
    return vowels(prompts, responses)


class Vowels:
    def __call__(self, prompts, responses):
        return vowels(prompts, responses)


class VowelsLater:
    async def __call__(self, prompts, responses):
        return await vowels_later(prompts, responses)


def engine_of(function, lm_tokenizer=None, **options):
    reward = Function(function, name="function", **options)
    reward.attach(decoder().engine.lm, lm_tokenizer or byte_level())
    return scheduler(rewards={"function": reward}, pages=40)


def request(prompt, text=None, messages=None, **options):
    one = sequence(prompt, weights={"function": 1.0}, **({"k": 4} | options))
    one.prompt_text, one.messages = text, messages
    return one


def exchanges(*responses):
    return [Exchange("p", response) for response in responses]


# ---- engine == oracle ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (vowels, {}),
        (vowels, {"timeout": 30}),
        (vowels, {"batch_size": 2}),
        (vowels_later, {}),
        (vowels_later, {"timeout": 30, "batch_size": 3}),
        (Vowels(), {}),
        (VowelsLater(), {"timeout": 30}),
        (lambda prompts, responses: vowels_later(prompts, responses), {}),
    ],
)
@pytest.mark.parametrize("lm_tokenizer", [byte_level(), sentencepiece()], ids=["bytes", "pieces"])
def test_a_function_guides(function, options, lm_tokenizer):
    prompt = tokens(9)
    choice = {"k": 5, "w": 8.0}

    def naive(text):
        start = lm_tokenizer.decode(prompt, skip_special_tokens=True)
        response = lm_tokenizer.decode(text, skip_special_tokens=True)[len(start) :]
        return vowels([start], [response.rstrip("\ufffd")])[0]

    expected = oracle.decode(language_model(), naive, prompt, steps=8, **choice)
    engine = engine_of(function, lm_tokenizer, **options)
    (one,) = run(engine, request(prompt, **choice))
    assert one.error is None, one.error
    assert one.generation().token_ids == expected.tokens
    assert one.generation().rewards == pytest.approx(expected.rewards, abs=1e-6)
    along = engine.rewards_along(one, expected.tokens)
    assert along == pytest.approx(expected.rewards, abs=1e-6)


def test_a_finished_text_is_asked_for_once():
    asked = []

    def remember(prompts, responses):
        asked.extend(responses)
        return [float(len(response)) for response in responses]

    pair = ArgsDecoder(language_model(), Function(remember), tokenizer=byte_level())
    text = tokens(5)
    (at_end,) = pair.rewards(["ab"], [text])
    assert len(asked) == 1
    assert at_end == pair.token_rewards("ab", text)[-1]


def test_duplicates_are_asked_once_over_the_whole_batch():
    calls = []

    def remember(prompts, responses):
        calls.append(list(zip(prompts, responses, strict=True)))
        return [0.0] * len(prompts)

    engine = engine_of(remember)
    run(engine, *(request(tokens(5), max_new_tokens=6) for _ in range(3)))
    assert calls
    assert all(len(set(texts)) == len(texts) for texts in calls)
    assert len(calls) < 3 * 6  # the three are asked for together


@pytest.mark.parametrize("size", [1, 2, 100])
def test_batch_size_bounds_a_call(size):
    calls = []

    def remember(prompts, responses):
        calls.append(len(prompts))
        return [float(len(r)) for r in responses]

    reward = Function(remember, batch_size=size)
    assert reward.values(exchanges("", "a", "bb", "ccc", "dddd")) == [0, 1, 2, 3, 4]
    assert sum(calls) == 5
    assert max(calls) == min(size, 5)


def test_a_function_that_declares_messages_gets_them():
    seen = []

    def with_messages(prompts, responses, messages):
        seen.extend(messages)
        return [0.0] * len(prompts)

    question = [{"role": "user", "content": "hi"}]
    engine = engine_of(with_messages)
    run(engine, request(tokens(5), "user: hi", question, max_new_tokens=2))
    assert seen
    assert all(messages == question for messages in seen)
    seen.clear()
    run(engine, request(tokens(5), max_new_tokens=2))
    assert all(messages is None for messages in seen)


def test_the_prompt_is_the_string_that_was_given():
    seen = set()

    def remember(prompts, responses):
        seen.update(prompts)
        return [0.0] * len(prompts)

    pair = ArgsDecoder(language_model(), Function(remember), tokenizer=byte_level())
    pair.generate("the cab é", DecodingConfig(k=3, max_new_tokens=2))
    assert seen == {"the cab é"}


# ---- faults --------------------------------------------------------------------------------------


def poison(value):
    def function(prompts, responses):
        if any(p == "bad" for p in prompts):
            return value(prompts)
        return [float(len(r)) for r in responses]

    return function


def explode(prompts):
    raise ZeroDivisionError("made up")


FAULTS = {
    "exception": (explode, "raised ZeroDivisionError: made up"),
    "NaN": (lambda p: [math.nan] * len(p), "is nan"),
    "infinite": (lambda p: [-math.inf] * len(p), "is -inf"),
    "count": (lambda p: [1.0], "gave 1 values for"),
    "text": (lambda p: ["high"] * len(p), "raised ValueError"),
    "none": (lambda p: None, "raised TypeError"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("timeout", [None, 30])
def test_a_fault_ends_its_request_alone(fault, timeout):
    value, message = FAULTS[fault]
    engine = engine_of(poison(value), timeout=timeout)
    bad = request(tokens(5), "bad", max_new_tokens=3)
    others = [request(tokens(5, seed=i), "good", max_new_tokens=3) for i in range(3)]
    run(engine, others[0], bad, *others[1:])
    with refuses(RewardError, "reward 'function'", message):
        raise bad.error
    assert bad.tokens == []
    assert all(one.error is None and len(one.tokens) == 3 for one in others)


class Flaky:
    """Fails the first ``failures`` times."""

    def __init__(self, failures, how):
        self.calls, self.failures, self.how = 0, failures, how

    def __call__(self, prompts, responses):
        self.calls += 1
        if self.calls <= self.failures:
            return self.how(prompts)
        return [1.0] * len(prompts)


@pytest.mark.parametrize("fault", FAULTS)
def test_retries(fault):
    value, message = FAULTS[fault]
    function = Flaky(2, value)
    assert Function(function, retries=2).checked(exchanges("a", "b")) == [1.0, 1.0]
    assert function.calls == 3
    function = Flaky(3, value)
    with refuses(RewardError, message):
        Function(function, retries=2).checked(exchanges("a", "b"))
    assert function.calls == 3


def test_timeout_of_a_function():
    release = threading.Event()

    def hang(prompts, responses):
        release.wait(60)
        return [0.0] * len(prompts)

    reward = Function(hang, name="slow", timeout=0.05, retries=1)
    start = time.monotonic()
    with refuses(RewardError, "'slow' took longer than its timeout of 0.05 s"):
        reward.checked(exchanges("a"))
    assert time.monotonic() - start < 30
    release.set()


def test_timeout_of_a_coroutine_cancels_it():
    cancelled = threading.Event()

    async def hang(prompts, responses):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with refuses(RewardError, "took longer"):
        Function(hang, timeout=0.05).checked(exchanges("a"))
    assert cancelled.wait(30)


def test_a_timeout_of_the_functions_own_is_reported_as_such():
    def impatient(prompts, responses):
        raise TimeoutError("the endpoint")

    for timeout in (None, 30):
        with refuses(RewardError, "raised TimeoutError: the endpoint"):
            Function(impatient, timeout=timeout).checked(exchanges("a"))


def test_coroutines_share_one_event_loop():
    loops = set()

    async def where(prompts, responses):
        loops.add(id(asyncio.get_running_loop()))
        return [0.0] * len(prompts)

    reward = Function(where)
    for response in "abc":
        reward.values(exchanges(response))
    assert len(loops) == 1


def test_an_async_function_works_within_a_running_event_loop():
    async def main():
        return Function(vowels_later).values(exchanges("a"))

    assert asyncio.run(main()) == [0.5]


def test_options_are_checked():
    with refuses(ConfigError, "is a int", "callable with (prompts, responses)"):
        Function(3)
    for options, message in [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
    ]:
        with refuses(ConfigError, message):
            Function(vowels, **options)


def test_name_is_the_functions():
    assert Function(vowels).name == "vowels"
    assert Function(Vowels()).name == "Vowels"
    assert Function(vowels, name="mine").name == "mine"


def test_a_decoder_without_a_tokenizer_is_refused():
    with refuses(ConfigError, "'vowels' reads text", "tokenizer="):
        ArgsDecoder(language_model(), Function(vowels))
