"""``generate(custom_generate=reward_guided(...))`` returns ARGS' tokens, as ``generate`` does."""

import copy
import functools
import inspect
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tiny_models import VOCABULARY, language_model, reward_model, tokens
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ArgsError, ConfigError, LengthError, PromptError
from args_fast.integrations.transformers import RewardGuidedOutput, reward_guided
from args_fast.rewards import Autoregressive

PAD = 0
NEW = 8


@functools.cache
def language():
    lm = copy.copy(language_model())  # whose configuration other tests rely on
    lm.generation_config = GenerationConfig(pad_token_id=PAD)
    return lm


def padded(prompts):
    """input_ids and attention_mask [B, T], padded on the left."""
    longest = max(map(len, prompts))
    ids = [[PAD] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generate(prompts, guided=None, **options):
    """What ``generate`` gives for a list of prompts; greedy decoding of its own without a loop."""
    options = {"max_new_tokens": NEW, "do_sample": False} | options
    return language().generate(**padded(prompts), custom_generate=guided, **options)


def new_tokens(output, prompts):
    """The rows without the prompts."""
    sequences = getattr(output, "sequences", output)
    return sequences[:, max(map(len, prompts)) :].tolist()


@functools.cache
def second_reward():
    return Autoregressive(language_model("llama", seed=5))


def rewards(kind):
    if kind == "classifier":
        return reward_model()
    return {"first": reward_model(), "second": second_reward()}


@functools.cache
def decoder(kind):
    return ArgsDecoder(language_model(), rewards(kind))


PROMPTS = [tokens(9), tokens(4, seed=1), tokens(17, seed=2)]


# ---- the tokens of ArgsDecoder -------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    prompt_seed=st.integers(0, 99),
    k=st.sampled_from([1, 2, 5, 10, VOCABULARY]),
    w=st.sampled_from([0.0, 0.5, 1.5, -2.0, 30.0]),
    temperature=st.none() | st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    seed=st.integers(0, 2**62),
    samples=st.integers(1, 3),
    new=st.integers(1, 12),
    ends_at=st.none() | st.integers(0, 11),
    top_p=st.none() | st.sampled_from([0.3, 0.8]),
    min_p=st.none() | st.sampled_from([0.05, 0.3]),
    kind=st.sampled_from(["classifier", "several", "second", "weighted"]),
)
def test_tokens_are_those_of_the_decoder(
    lengths, prompt_seed, k, w, temperature, seed, samples, new, ends_at, top_p, min_p, kind
):
    prompts = [tokens(n, seed=prompt_seed + i) for i, n in enumerate(lengths)]
    draws = temperature is not None
    samples = samples if draws else 1  # generate refuses equal answers
    weights = {"second": "second", "weighted": {"first": 0.5, "second": -1.5}}.get(kind)
    narrowing = {"top_p": top_p, "min_p": min_p} if draws else {}
    config = DecodingConfig(
        k=k,
        w=w,
        temperature=temperature,
        seed=seed,
        max_new_tokens=new,
        num_return_sequences=samples,
        reward=weights,
        eos_token_ids=(),
        **narrowing,
    )
    alone = decoder("classifier" if kind == "classifier" else "several")
    expected = [result.token_ids for result in alone.generate(prompts, config)]
    eos = None if ends_at is None else expected[0][ends_at % new]
    expected = [_ended(row, eos) for row in expected]
    longest = max(map(len, expected))
    guided = reward_guided(
        rewards("classifier" if kind == "classifier" else "several"),
        k,
        w,
        seed=seed,
        weights=weights,
    )
    output = generate(
        prompts,
        guided,
        do_sample=draws,
        temperature=temperature or 1.0,
        max_new_tokens=new,
        num_return_sequences=samples,
        eos_token_id=eos,
        top_k=None,
        **narrowing,
    )
    assert new_tokens(output, prompts) == [row + [PAD] * (longest - len(row)) for row in expected]


def _ended(row, eos):
    return row[: row.index(eos) + 1] if eos in row else row


class Favour(LogitsProcessor):
    """A processor of a user's: it likes the token after the last one."""

    def __call__(self, input_ids, scores):
        rows = torch.arange(len(scores))
        scores[rows, (input_ids[:, -1] + 1) % VOCABULARY] += 3.0
        return scores


PROCESSED = [
    {"repetition_penalty": 1.7},
    {"encoder_repetition_penalty": 1.7},
    {"encoder_no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[5], [7, 9]]},
    {"sequence_bias": [[[5], 2.5], [[7, 9], 4.0]]},
    {"min_new_tokens": 4, "eos_token_id": [5, 7, 9, 11, 18, 51]},
    {"forced_eos_token_id": 7, "eos_token_id": 7},
    {"suppress_tokens": list(range(3, 40))},
    {"begin_suppress_tokens": list(range(3, 40))},
    {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 7},
    {"renormalize_logits": True},
    {"prefix_allowed_tokens_fn": lambda row, ids: [3 + row, 4 + row, 5 + len(ids) % 7]},
    {"logits_processor": [Favour()]},
]


@pytest.mark.parametrize("rules", PROCESSED, ids=lambda rules: next(iter(rules)))
def test_one_candidate_is_generate(rules):
    guided = reward_guided(reward_model(), k=1)
    expected, output = generate(PROMPTS, **rules), generate(PROMPTS, guided, **rules)
    assert new_tokens(output, PROMPTS) == new_tokens(expected, PROMPTS)


@pytest.mark.parametrize("temperature", [None, 0.8])
def test_processed_logits_are_the_candidates(temperature):
    processors = LogitsProcessorList([Favour()])
    config = DecodingConfig(
        k=5, max_new_tokens=NEW, temperature=temperature, seed=3, eos_token_ids=[2]
    )
    (expected,) = ArgsDecoder(
        language_model(), reward_model(), logits_processor=processors
    ).generate(PROMPTS[0], config)
    draws = {} if temperature is None else {"do_sample": True, "temperature": temperature}
    guided = reward_guided(reward_model(), k=5, seed=3)
    output = generate(PROMPTS[:1], guided, logits_processor=processors, eos_token_id=2, **draws)
    assert new_tokens(output, PROMPTS[:1]) == [expected.token_ids]


# ---- what comes back -----------------------------------------------------------------------------


def test_ids_are_returned_with_the_prompt():
    output = generate(PROMPTS, reward_guided(reward_model()))
    assert output.dtype == torch.int64
    assert torch.equal(output[:, :17], padded(PROMPTS)["input_ids"])


@pytest.mark.parametrize("temperature", [None, 0.8])
@pytest.mark.parametrize(("k", "w"), [(5, 1.5), (5, 0.0), (1, 1.5)])
def test_scores(k, w, temperature):
    draws = {} if temperature is None else {"do_sample": True, "temperature": temperature}
    output = generate(
        PROMPTS,
        reward_guided(reward_model(), k, w, seed=4),
        return_dict_in_generate=True,
        output_scores=True,
        **draws,
    )
    assert isinstance(output, RewardGuidedOutput)
    assert len(output.scores) == NEW
    config = DecodingConfig(
        k=k,
        w=w,
        seed=4,
        max_new_tokens=NEW,
        temperature=temperature,
        return_candidates=True,
        eos_token_ids=(),
    )
    results = decoder("classifier").generate(PROMPTS, config)
    for row, result in enumerate(results):
        assert output.rewards[row].tolist() == pytest.approx(result.rewards, abs=1e-4, nan_ok=True)
        for column, candidates in enumerate(result.candidates):
            scores = output.scores[column][row]
            assert int((scores > -torch.inf).sum()) == len(candidates) == k
            for c in candidates:
                score = (c.logprob if k == 1 else c.score) / (temperature or 1.0)
                assert scores[c.token_id].item() == pytest.approx(score, abs=1e-4)
    transition = language().compute_transition_scores(
        output.sequences, output.scores, normalize_logits=True
    )
    assert torch.isfinite(transition).all()


def test_logits_are_the_language_models():
    options = {"return_dict_in_generate": True, "output_logits": True}
    expected = generate(PROMPTS, **options)
    output = generate(PROMPTS, reward_guided(reward_model(), k=1), **options)
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits))


def test_rows_that_have_ended_are_padded():
    guided = reward_guided(reward_model(), k=5)
    eos = new_tokens(generate(PROMPTS, guided), PROMPTS)[0][2]
    options = {"return_dict_in_generate": True, "output_scores": True, "eos_token_id": eos}
    output = generate(PROMPTS, guided, **options)
    row = new_tokens(output, PROMPTS)[0]
    assert row[3:] == [PAD] * len(row[3:])
    assert all(scores[0].argmax() == PAD for scores in output.scores[3:])
    assert output.rewards[0, 3:].isnan().all()


def test_seed_is_torchs():
    def draw():
        options = {"do_sample": True, "num_return_sequences": 4}
        return generate(PROMPTS[:1], reward_guided(reward_model()), **options).tolist()

    torch.manual_seed(0)
    first, second = draw(), draw()
    torch.manual_seed(0)
    assert draw() == first != second
    assert len({tuple(row) for row in first}) > 1


class Recorded(BaseStreamer):
    def __init__(self):
        self.columns, self.ended = [], False

    def put(self, value):
        self.columns.append(value)

    def end(self):
        self.ended = True


def test_streamer_sees_columns():
    streamer = Recorded()
    output = generate(PROMPTS, reward_guided(reward_model()), streamer=streamer)
    prompt, *columns = streamer.columns
    assert torch.equal(torch.cat([prompt, torch.stack(columns, dim=1)], dim=1), output)
    assert streamer.ended


def test_streamer_that_another_thread_reads_ends():
    class Words:
        def decode(self, ids, **_):
            return " ".join(map(str, ids)) + " "

    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    guided, outputs = reward_guided(reward_model()), []
    thread = threading.Thread(
        target=lambda: outputs.append(generate(PROMPTS[:1], guided, streamer=streamer))
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert [int(word) for word in text.split()] == new_tokens(outputs[0], PROMPTS[:1])[0]


class EndsRow(StoppingCriteria):
    """Ends row i after 2 + i new tokens."""

    def __init__(self, prompt):
        self.prompt = prompt

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] - self.prompt >= 2 + torch.arange(len(input_ids))


@pytest.mark.parametrize("eos", [None, 60])
def test_stopping_criteria(eos):
    """With an end token rows that have ended are padded; without, they run until all have ended, as
    those of ``generate`` do."""
    options = {"stopping_criteria": [EndsRow(17)], "eos_token_id": eos}
    expected = generate(PROMPTS, **options)
    output = generate(PROMPTS, reward_guided(reward_model(), k=1), **options)
    assert output.shape[1] == 17 + 4
    assert new_tokens(output, PROMPTS) == new_tokens(expected, PROMPTS)


def test_time_is_a_criterion():
    output = generate(PROMPTS, reward_guided(reward_model()), max_time=1e-6, max_new_tokens=40)
    assert output.shape[1] == 17 + 1


def test_length_of_a_criterion_counts():
    options = {"stopping_criteria": [MaxLengthCriteria(20)]}
    assert generate(PROMPTS, reward_guided(reward_model()), **options).shape[1] == 20


def test_more_rows_than_the_engine_decodes_together():
    prompts = [tokens(5 + i, seed=i) for i in range(7)]
    few = reward_guided(reward_model(), max_batch_size=2)
    assert torch.equal(generate(prompts, few), generate(prompts, reward_guided(reward_model())))


# ---- what it refuses -----------------------------------------------------------------------------

REFUSED = [
    ({"num_beams": 2}, "num_beams is 2"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha is 0.6"),
    ({"dola_layers": "low", "repetition_penalty": 1.2}, "dola_layers is 'low'"),
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is 3"),
    ({"guidance_scale": 1.5}, "guidance_scale is 1.5"),
    ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions is True"),
    (
        {"return_dict_in_generate": True, "output_hidden_states": True},
        "output_hidden_states is True",
    ),
    ({"do_sample": True, "typical_p": 0.5}, "typical_p is 0.5"),
    ({"do_sample": True, "epsilon_cutoff": 0.1}, "epsilon_cutoff is 0.1"),
    ({"do_sample": True, "top_k": 3}, "top_k of generate is 3 and k of reward_guided is 10"),
    (
        {"do_sample": True, "logits_processor": [TemperatureLogitsWarper(0.5)]},
        "TemperatureLogitsWarper of 0.5",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:20])
def test_other_algorithms_are_refused(options, message):
    with refuses(ConfigError, message):
        generate(PROMPTS, reward_guided(reward_model()), **options)


def test_assistant_is_refused():
    with refuses(ConfigError, "assistant_model is not supported"):
        generate(PROMPTS[:1], reward_guided(reward_model()), assistant_model=language_model())


def test_cache_with_tokens_is_refused():
    lm, cache = language(), DynamicCache(config=language().config)
    ids = torch.tensor([PROMPTS[0]])
    name = "cache" if "cache" in inspect.signature(type(lm.model).forward).parameters else None
    name = name or "past_key_values"
    lm(ids[:, :-1], use_cache=True, **{name: cache})
    with refuses(ConfigError, "holds tokens already"):
        options = {"max_new_tokens": NEW, name: cache}
        lm.generate(ids, custom_generate=reward_guided(reward_model()), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "pad on the left"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "pad on the left"),
        ({"position_ids": torch.tensor([[3, 4, 5, 6]])}, "position_ids do not count"),
    ],
)
def test_padding_elsewhere_is_refused(change, message):
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "max_new_tokens": 2} | change
    with refuses(PromptError, message):
        language().generate(**inputs, custom_generate=reward_guided(reward_model()))


def test_unknown_options_are_refused():
    with refuses(ConfigError, "beams is not an option"):
        reward_guided(reward_model(), beams=3)
    with refuses(ConfigError, "k is 0"):
        reward_guided(reward_model(), k=0)
    with pytest.raises(ValueError, match="not used by the model"):
        generate(PROMPTS, reward_guided(reward_model()), q=3)
    with refuses(ConfigError, "reward names 'none'"):
        generate(PROMPTS, reward_guided(rewards("several"), weights="none"))


def test_too_long_is_refused():
    with refuses(LengthError, "together"):
        generate(PROMPTS, reward_guided(reward_model()), max_new_tokens=500)


def test_training_mode_is_refused():
    lm = language()
    lm.train()
    try:
        with refuses(ConfigError, "call lm.eval()"):
            generate(PROMPTS, reward_guided(reward_model()))
    finally:
        lm.eval()


def test_an_error_frees_the_engine():
    class Fails(LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise RuntimeError("a processor's own error")

    guided = reward_guided(reward_model())
    with pytest.raises((RuntimeError, ArgsError), match="own error"):
        generate(PROMPTS, guided, logits_processor=[Fails()])
    assert generate(PROMPTS, guided).shape[1] == 17 + NEW


def test_generate_is_where_a_streamer_is_looked_up():
    """It is dropped by every version so far; one that hands it on makes the look-up superfluous."""
    assert "streamer" in inspect.signature(GenerationMixin.generate).parameters
