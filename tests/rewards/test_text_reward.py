"""Rewards of strings by a sequence classifier of its own tokenizer, against a naive decoder that
tokenizes each candidate's whole text and runs transformers on it alone."""

import copy
import functools
import itertools

import oracle
import pytest
import torch
import transformers as t
from encoders import ENCODERS, decoder_classifier, encoder, own_forward, without_padding
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from refusals import refuses
from tiny_models import VOCABULARY, decoder, language_model, tokens
from traffic import MARGIN, run, scheduler, sequence
from vocabularies import byte_level, sentencepiece, unigram, wordpiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import (
    ConfigError,
    LengthError,
    PromptError,
    RewardHeadError,
    UnsupportedModelError,
)
from args_fast.rewards import Text
from args_fast.rewards.cached_texts import CachedTexts, common_prefix
from args_fast.rewards.strings import Encoded

TOKENIZERS = {
    "bytes": byte_level,
    "pieces": sentencepiece,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "trims": "{% for m in messages %}<s>{{ m.role }}\n\n{{ m.content | trim }}</s>{% endfor %}",
    "thinks": (
        "{% for m in messages %}<s>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
        "{% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}"
    ),
}
QUESTION = [{"role": "user", "content": "the cab"}]


def templated(name, tokenizer="bytes"):
    own = copy.deepcopy(TOKENIZERS[tokenizer]())
    own.chat_template = TEMPLATES[name]
    return own


def strings(lm_tokenizer, prompt, text, prompt_text=None):
    """The prompt and the response of a text of ids, by the contract's words."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    start = lm_tokenizer.decode(prompt, **options)
    response = lm_tokenizer.decode(text, **options)[len(start) :].rstrip("\ufffd")
    return start if prompt_text is None else prompt_text, response


def naive(model, tokenizer, template, lm_tokenizer, prompt, prompt_text, messages, **options):
    @functools.cache
    def reward_of(start, response):
        if template == "chat":
            turns = [*messages, {"role": "assistant", "content": response}]
            rendered = tokenizer.apply_chat_template(turns, tokenize=False)
            return own_forward(model, tokenizer, rendered, add_special_tokens=False, **options)
        parts = (start, response) if template == "pair" else (start + response,)
        return own_forward(model, tokenizer, *parts, **options)

    return lambda text: reward_of(*strings(lm_tokenizer, prompt, text, prompt_text))


def engine_of(reward, lm_tokenizer):
    reward.attach(decoder().engine.lm, lm_tokenizer)
    return scheduler(rewards={"text": reward}, pages=40)


def request(prompt, prompt_text=None, messages=None, **options):
    one = sequence(prompt, weights={"text": 1.0}, **options)
    one.prompt_text, one.messages = prompt_text, messages
    return one


class CloseError(Exception):
    """Two choices are so close that either may come out in float32."""


def compare(
    model,
    tokenizer,
    template="plain",
    *,
    lm_tokenizer=None,
    prompts=((9, 33, 41, 12, 27, 50, 6, 38, 22),),
    prompt_text=None,
    messages=None,
    steps=6,
    reward_options=None,
    naive_options=None,
    **options,
):
    """Engine and oracle, token for token, for prompts decoded in one batch."""
    options = {"k": 6, "w": 3.0} | options
    lm_tokenizer = lm_tokenizer or byte_level()
    reward = Text(model, tokenizer, template=template, **(reward_options or {}))
    engine = engine_of(reward, lm_tokenizer)
    ones = [
        request(list(p), prompt_text, messages, max_new_tokens=steps, **options) for p in prompts
    ]
    run(engine, *ones)
    ends = {"eos": options.pop("eos_token_ids", ())}
    for one in ones:
        guide = naive(
            *(model, tokenizer, template, lm_tokenizer, one.prompt, prompt_text, messages),
            **(naive_options or {}),
        )
        expected = oracle.decode(
            language_model(), guide, one.prompt, steps=steps, **options, **ends
        )
        if expected.margin <= MARGIN:
            raise CloseError
        assert one.error is None, one.error
        result = one.generation()
        assert result.token_ids == expected.tokens
        if options["k"] > 1 and options["w"] != 0:
            assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
            along = engine.rewards_along(one, result.token_ids)
            assert along == pytest.approx(expected.rewards, abs=1e-4)
    cached = reward._cached
    assert cached is None or not cached._stored
    return reward, ones


# ---- engine == oracle ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("llama", "unigram"),
        ("gpt2", "pieces"),
        ("opt", "bytes"),
        ("mistral", "wordpiece"),
        ("gemma2", "unigram"),
        ("qwen3", "pieces"),
        ("gpt_oss", "bytes"),
    ],
)
def test_a_decoder_of_another_tokenizer(name, tokenizer):
    reward, _ = compare(decoder_classifier(name), TOKENIZERS[tokenizer]())
    assert reward.cached


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("template", "tokenizer"), [("plain", "unigram"), ("pair", "wordpiece")])
def test_an_encoder(name, template, tokenizer):
    prompts = [tuple(tokens(n, seed=n)) for n in (5, 12)]
    reward, _ = compare(encoder(name), TOKENIZERS[tokenizer](), template, prompts=prompts)
    assert not reward.cached
    assert reward._whole.batches == "padded"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_conversation_is_read_through_the_rewards_template(template, model):
    tokenizer = templated(template)
    given_as = {"messages": QUESTION, "prompt_text": "user: the cab"}
    reward, _ = compare(decoder_classifier(model), tokenizer, "chat", **given_as)
    assert reward.cached


def test_the_response_continues_a_last_turn_of_the_assistant():
    reward = Text(decoder_classifier("llama"), templated("plain"), template="chat")
    engine = engine_of(reward, byte_level())
    messages = [*QUESTION, {"role": "assistant", "content": "a"}]
    one = request(tokens(5), "the cab a", messages)
    _, response = strings(byte_level(), one.prompt, [*one.prompt, 30, 31])
    rendered = reward.encoder.tokenizer.apply_chat_template(
        [*QUESTION, {"role": "assistant", "content": "a" + response}], tokenize=False
    )
    expected = own_forward(
        reward.model, reward.encoder.tokenizer, rendered, add_special_tokens=False
    )
    assert engine.rewards_along(one, [30, 31])[-1] == pytest.approx(expected, abs=1e-4)


def test_auto_renders_conversations_and_reads_other_prompts_plainly():
    model, tokenizer = decoder_classifier("llama"), templated("trims")
    reward = Text(model, tokenizer)
    engine = engine_of(reward, byte_level())
    conversation, plain = request(tokens(5), "x", QUESTION), request(tokens(5), "x")
    run(engine, conversation, plain)
    for one, template in ((conversation, "chat"), (plain, "plain")):
        guide = naive(model, tokenizer, template, byte_level(), one.prompt, "x", QUESTION)
        assert one.tokens[-1].reward == pytest.approx(guide(one.ids), abs=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_text_reward_is_the_oracles(data):
    def draw(*choices):
        return data.draw(st.sampled_from(choices))

    kind = draw("decoder", "decoder", "encoder")
    model = (
        decoder_classifier(draw("llama", "gpt2", "mistral"))
        if kind == "decoder"
        else encoder(draw(*ENCODERS))
    )
    template = draw("plain", "pair")
    prompts = data.draw(
        st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=12), min_size=1,
                 max_size=3)
    )  # fmt: skip
    options = {
        "lm_tokenizer": draw(byte_level, sentencepiece)(),
        "prompts": [tuple(p) for p in prompts],
        "prompt_text": draw(None, "the abcd é", "a b  "),
        "steps": 4,
        "k": draw(1, 2, 5, 9),
        "w": draw(0.0, 1.5, -2.0, 8.0),
        "temperature": draw(None, 0.7),
        "eos_token_ids": draw([], [2, 30]),
    }
    try:
        compare(model, TOKENIZERS[draw(*TOKENIZERS)](), template, **options)
    except CloseError:
        assume(False)


def test_a_merge_across_the_boundary_changes_what_is_stored():
    """ "ab" then "cd" merge: the prefix of the text of one step is not that of the next."""
    vocabulary = byte_level().get_vocab()
    a, b, c, d = (vocabulary[x] for x in "abcd")
    texts = [[a], [a, b], [a, b, c], [a, b, c, d], [a, b, c, d, a]]
    ids = [tuple(byte_level()(byte_level().decode(x)).input_ids) for x in texts]
    assert any(common_prefix(x, y) < len(x) for x, y in itertools.pairwise(ids))
    model, reward = decoder_classifier("llama"), Text(decoder_classifier("llama"), byte_level())
    reward.attach(decoder().engine.lm, byte_level())
    for text in ids:
        (value,) = reward._cached.values({"one": [text]})["one"]
        reward._cached.keep("one", text)
        with torch.no_grad():
            alone = without_padding(model)(input_ids=torch.tensor([text])).logits.item()
        assert value == pytest.approx(alone, abs=1e-4)


# ---- the cache -----------------------------------------------------------------------------------


def counted(reward):
    """Rows that a reward model reads from now on."""
    backbone, rows = reward._cached._backbone, {"prefill": 0, "tail": 0}
    hidden, prefill = backbone.hidden, backbone.prefill

    def prefill_counted(cache, ids, *more):
        rows["prefill"] += len(ids)
        rows["tail"] -= len(ids)  # its own pass is counted below
        prefill(cache, ids, *more)

    def hidden_counted(ids, *more):
        rows["tail"] += ids.numel()
        return hidden(ids, *more)

    backbone.prefill, backbone.hidden = prefill_counted, hidden_counted
    return rows


def test_a_step_reads_one_row_per_candidate():
    """With the language model's own tokenizer: the prompt once, then k rows, not k texts."""
    k, steps, prompt = 5, 8, tokens(40)
    reward = Text(decoder_classifier("llama"), byte_level())
    engine = engine_of(reward, byte_level())
    text = byte_level().decode(prompt, skip_special_tokens=True)
    rows = counted(reward)
    (one,) = run(engine, request(prompt, text, k=k, max_new_tokens=steps))
    assert one.error is None
    length = len(byte_level()(text).input_ids)
    assert rows["prefill"] <= length + 2 * steps
    assert rows["tail"] <= 3 * k * steps


def test_what_texts_of_one_request_share_is_read_once():
    """After a merge has changed the last ids of what is stored, in one pass over a tree."""
    model, reward = decoder_classifier("llama"), Text(decoder_classifier("llama"), byte_level())
    reward.attach(decoder().engine.lm, byte_level())
    stored, others = tuple(tokens(20)), tuple(tokens(4, seed=1))
    reward._cached.values({"one": [stored]})
    reward._cached.keep("one", stored)
    texts = [(*stored[:-3], *others, last) for last in range(5, 10)] + [(*stored[:-2], 5, 6)]
    rows = counted(reward)
    values = reward._cached.values({"one": texts})["one"]
    assert rows == {"prefill": 0, "tail": len(others) + 5 + 3}
    chosen = texts[2]
    reward._cached.keep("one", chosen)
    (after,) = reward._cached.values({"one": [(*chosen, 7)]})["one"]
    assert rows["tail"] == len(others) + 5 + 3 + 1
    for text, value in zip([*texts, (*chosen, 7)], [*values, after], strict=True):
        with torch.no_grad():
            alone = without_padding(model)(input_ids=torch.tensor([text])).logits.item()
        assert value == pytest.approx(alone, abs=1e-4)


def test_requests_of_one_batch_are_read_in_one_pass():
    reward = Text(decoder_classifier("llama"), byte_level())
    engine = engine_of(reward, byte_level())
    passes = []
    hidden = reward._cached._backbone.hidden
    reward._cached._backbone.hidden = lambda ids, *more: passes.append(ids) or hidden(ids, *more)
    run(engine, *(request(tokens(9, seed=i), max_new_tokens=1) for i in range(4)))
    assert max(ids.shape[0] for ids in passes) > 1


def test_texts_that_share_little_are_read_one_after_the_other():
    reward = Text(decoder_classifier("llama"), byte_level())
    reward.attach(decoder().engine.lm, byte_level())
    texts = [(1, i, *tokens(60, seed=i)) for i in range(3, 7)]
    values = reward._cached.values({0: texts})[0]
    alone = reward._whole.values([Encoded(text) for text in texts])
    assert values == pytest.approx(alone, abs=1e-4)
    reward._cached.keep(0, texts[0])
    longer = (*texts[0], 9)
    assert reward._cached.values({0: [longer]})[0] == pytest.approx(
        reward._whole.values([Encoded(longer)]), abs=1e-4
    )


def test_pages_are_free_when_requests_end():
    reward = Text(decoder_classifier("llama"), byte_level())
    engine = engine_of(reward, byte_level())
    run(engine, *(request(tokens(20, seed=i)) for i in range(6)))
    cached: CachedTexts = reward._cached
    assert not cached._stored
    assert sorted(cached._free) == list(range(1, 1 + len(cached._free)))
    assert len(cached._free) == cached._cache.k_pages.shape[1] - 1


def test_a_model_that_changes_its_heads_output_is_read_whole():
    class Sigmoid(t.LlamaForSequenceClassification):
        def forward(self, *args, **options):
            out = super().forward(*args, **options)
            out.logits = out.logits.sigmoid()
            return out

    plain = decoder_classifier("llama")
    model = Sigmoid(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    reward, ones = compare(model, byte_level(), steps=4)
    assert not reward.cached
    assert reward._whole.batches == "of one"  # transformers refuses a batch without a padding id
    assert all(0 < token.reward < 1 for token in ones[0].tokens)


def test_batches_a_model_gets_wrong_are_not_used():
    class IgnoresMasks(t.BertForSequenceClassification):
        def forward(self, input_ids, **options):
            return super().forward(input_ids, token_type_ids=options.get("token_type_ids"))

    plain = encoder("bert")
    model = IgnoresMasks(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    reward, _ = compare(model, wordpiece(), steps=4)
    assert reward._whole.batches == "of one length"


# ---- heads and labels ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize(
    ("labels", "fold"),
    [(1, {1: 1.0}), ({0: -1.0, 2: 0.5}, {0: -1.0, 2: 0.5}), ("LABEL_2", {2: 1.0})],
)
def test_labels_make_one_number_of_several(kind, labels, fold):
    model = (
        decoder_classifier("llama", labels=3) if kind == "decoder" else encoder("bert", labels=3)
    )
    reward, _ = compare(
        *(model, wordpiece()),
        steps=4,
        reward_options={"labels": labels},
        naive_options={"fold": fold},
    )
    assert reward.cached == (kind == "decoder")


@pytest.mark.parametrize("model", [decoder_classifier("llama", 3), encoder("bert", 3)])
def test_several_outputs_without_labels_are_refused(model):
    with refuses(RewardHeadError, "3 outputs", "labels=1"):
        Text(model, wordpiece())


def test_a_head_of_the_callers_own():
    body = decoder_classifier("llama").model
    head = torch.nn.Linear(32, 1)
    reward = Text(body, byte_level(), head=head)
    engine = engine_of(reward, byte_level())
    (one,) = run(engine, request(tokens(6), max_new_tokens=4))
    start, response = strings(byte_level(), one.prompt, one.ids)
    with torch.no_grad():
        ids = byte_level()(start + response, return_tensors="pt").input_ids
        expected = head(body(ids).last_hidden_state[0, -1]).item()
    assert reward.cached
    assert one.tokens[-1].reward == pytest.approx(expected, abs=1e-4)


# ---- lengths -------------------------------------------------------------------------------------


def short_model(kind):
    if kind == "roberta":
        config = ENCODERS["roberta"](num_labels=1)
    else:
        config = copy.deepcopy(decoder_classifier("llama").config)
    config.max_position_embeddings = 24
    torch.manual_seed(0)
    return t.AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize(("kind", "limit"), [("llama", 24), ("roberta", 23)])
def test_a_text_that_is_too_long_ends_its_request_alone(kind, limit):
    reward = Text(short_model(kind), byte_level())
    assert reward.encoder.max_length == limit
    engine = engine_of(reward, byte_level())
    short = request(tokens(4), "ab", k=4, max_new_tokens=3)
    long = request(tokens(6), "a" * 12 + "bab", k=4, max_new_tokens=40)
    run(engine, long, short)
    assert isinstance(long.error, LengthError)
    with refuses(LengthError, "the text has", f"takes {limit}", "left"):
        raise long.error
    assert short.error is None
    assert len(short.tokens) == 3


def test_a_prompt_that_is_too_long_is_refused_before_any_work():
    reward = Text(short_model("llama"), byte_level())
    engine = engine_of(reward, byte_level())
    with refuses(LengthError, "41 tokens", "takes 24"):
        engine.submit(request(tokens(4), "x" * 40))


@pytest.mark.parametrize("template", ["plain", "pair"])
@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_left_drops_the_oldest_text(template, kind):
    model, limit = short_model(kind), {"llama": 24, "roberta": 23}[kind]
    tokenizer, cut, prompt_text = (
        wordpiece(),
        copy.deepcopy(wordpiece()),
        "a b c d e f g h i j k " * 3,
    )
    cut.truncation_side = "left"
    truncation = True if template == "plain" else "only_first"
    reward = Text(model, tokenizer, template=template, too_long="left")
    engine = engine_of(reward, byte_level())
    (one,) = run(engine, request(tokens(6), prompt_text, max_new_tokens=4))
    _, response = strings(byte_level(), one.prompt, one.ids)
    parts = (prompt_text, response) if template == "pair" else (prompt_text + response,)
    assert len(tokenizer(*parts).input_ids) > limit
    expected = own_forward(model, cut, *parts, truncation=truncation, max_length=limit)
    assert one.tokens[-1].reward == pytest.approx(expected, abs=1e-4)


def test_left_refuses_a_response_that_does_not_fit_alone():
    reward = Text(short_model("llama"), wordpiece(), template="pair", too_long="left")
    engine = engine_of(reward, byte_level())
    one = request(tokens(6), "a b", max_new_tokens=8)
    assert len(engine.rewards_along(one, [30])) == 1
    with refuses(LengthError, "Shorten the prompt or set max_new_tokens lower"):
        engine.rewards_along(one, [byte_level().get_vocab()["."]] * 40)


# ---- refusals ------------------------------------------------------------------------------------


def test_options_are_checked():
    model = decoder_classifier("llama")
    with refuses(ConfigError, "template is 'html'", "auto, chat, plain, pair"):
        Text(model, byte_level(), template="html")
    with refuses(ConfigError, "too_long is 'right'"):
        Text(model, byte_level(), too_long="right")
    with refuses(ConfigError, "no chat template"):
        Text(model, byte_level(), template="chat")
    with refuses(ConfigError, "tokenizer is a NoneType"):
        Text(model, None)
    with refuses(UnsupportedModelError, "Function"):
        Text(lambda text: 0, byte_level())
    with refuses(RewardHeadError, "Autoregressive"):
        Text(language_model(), byte_level())


def test_a_chat_reward_refuses_a_prompt_that_is_not_a_conversation():
    reward = Text(decoder_classifier("llama"), templated("plain"), template="chat")
    engine = engine_of(reward, byte_level())
    with refuses(PromptError, "not a conversation", "template='auto'"):
        engine.submit(request(tokens(5)))


def test_a_template_that_raises_ends_its_request():
    tokenizer = templated("plain")
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}x"
    )
    reward = Text(decoder_classifier("llama"), tokenizer, template="chat")
    engine = engine_of(reward, byte_level())
    with refuses(PromptError, "refuses this conversation", "too many"):
        engine.submit(request(tokens(5), "x", QUESTION * 3))


def test_training_mode_is_refused():
    model = copy.deepcopy(decoder_classifier("llama"))
    reward = Text(model, byte_level())
    engine = engine_of(reward, byte_level())
    model.train()
    with refuses(ConfigError, "training mode"):
        engine.submit(request(tokens(5)))


def test_a_decoder_takes_it_in_place_of_a_reward_model():
    pair = ArgsDecoder(language_model(), Text(encoder("bert"), wordpiece()), tokenizer=byte_level())
    config = DecodingConfig(k=4, max_new_tokens=5, eos_token_ids=[])
    (result,) = pair.generate("the cab", config)
    along = pair.token_rewards("the cab", result.token_ids)
    assert along == pytest.approx(result.rewards, abs=1e-4)


def test_a_model_that_cannot_read_at_all_is_refused():
    model = copy.deepcopy(decoder_classifier("llama"))
    model.score.bias = torch.nn.Parameter(torch.zeros(7))  # it has one output
    with refuses(UnsupportedModelError, "cannot read a text of 5 tokens", "config.json"):
        Text(model, byte_level())
