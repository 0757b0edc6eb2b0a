"""Tokens to text: while they stream, over characters of several tokens, up to a stop string."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import VOCABULARY, language_model, reward_model
from vocabularies import byte_level, sentencepiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.text import UNFINISHED, TextStream

TOKENIZERS = [byte_level, sentencepiece]
IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)
# Made of what the tokenizers know, so that every text can be encoded.
TEXTS = st.text(alphabet="ab cdé你🙂ß.,", min_size=1, max_size=20)


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stream(tokenizer, ids, stop=()):
    """All pieces up to the end or the stop, and the stream."""
    text, pieces = TextStream(tokenizer, stop), []
    for i, token in enumerate(ids):
        last = i == len(ids) - 1
        text.push(token, last=last)
        pieces.append(text.take(last=last or text.stopped))
        if text.stopped:
            break
    return text, pieces


def stopped(tokenizer, ids, stop):
    """What the text of these ids is with these stop strings, and after how many tokens it ends."""
    for n in range(1, len(ids) + 1):
        text = decode(tokenizer, ids[:n])
        found = [text.index(each) for each in stop if each in text]
        if found:
            return text[: min(found)], n
    return decode(tokenizer, ids), None


# ---- text without stop strings -------------------------------------------------------------------


@given(IDS)
def test_any_bytes_stream_to_what_the_tokenizer_decodes(ids):
    text, pieces = stream(byte_level(), ids)
    assert text.text == "".join(pieces) == decode(byte_level(), ids)
    assert not text.stopped


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=TEXTS)
def test_any_text_streams_to_itself(tokenizer, text):
    ids = tokenizer()(text, add_special_tokens=False).input_ids
    streamed, pieces = stream(tokenizer(), ids)
    assert streamed.text == "".join(pieces) == decode(tokenizer(), ids)
    assert streamed.text in (text, text[1:])  # sentencepiece drops a first space


@given(IDS)
def test_any_ids_stream_to_pieces_that_add_up(ids):
    text, pieces = stream(sentencepiece(), ids)
    assert text.text == "".join(pieces)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=TEXTS)
def test_no_half_character_is_shown(tokenizer, text):
    ids = tokenizer()(text, add_special_tokens=False).input_ids
    _, pieces = stream(tokenizer(), ids)
    assert not any(UNFINISHED in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte():
    ids = byte_level()("a你b", add_special_tokens=False).input_ids
    assert len(ids) == 5
    _, pieces = stream(byte_level(), ids)
    assert pieces == ["a", "", "", "你", "b"]


def test_bytes_that_never_become_a_character_come_at_the_end():
    ids = byte_level()("a你", add_special_tokens=False).input_ids[:-1]
    _, pieces = stream(byte_level(), ids)
    assert pieces == ["a", "", UNFINISHED]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_special_tokens_have_no_text(tokenizer):
    a, *b = tokenizer()("a b", add_special_tokens=False).input_ids
    text, pieces = stream(tokenizer(), [1, a, 0, 2, *b, 2])
    assert text.text == "".join(pieces) == "a b"


# ---- stop strings --------------------------------------------------------------------------------


@st.composite
def ids_and_stops(draw):
    """Stop strings most of which do come up."""
    ids = draw(IDS)
    text = decode(byte_level(), ids).replace(UNFINISHED, "")
    stops = draw(st.lists(TEXTS, max_size=1))
    for _ in range(draw(st.integers(0, 2))):
        if text:
            start = draw(st.integers(0, len(text) - 1))
            stops.append(text[start : start + draw(st.integers(1, 5))])
    return ids, stops


@given(ids_and_stops())
def test_the_text_is_cut_before_the_first_stop_string(drawn):
    ids, stop = drawn
    wanted, after = stopped(byte_level(), ids, stop)
    text, pieces = stream(byte_level(), ids, stop)
    assert text.text == "".join(pieces) == wanted
    assert text.stopped == (after is not None)
    assert len(pieces) == (after or len(ids))


@given(ids_and_stops())
def test_only_the_possible_start_of_a_stop_string_is_held_back(drawn):
    ids, stop = drawn
    text, shown = TextStream(byte_level(), stop), ""
    for token in ids:
        text.push(token)
        shown += text.take()
        if text.stopped:
            break
        held = text.text[len(shown) :]
        assert text.text.startswith(shown)
        assert held == "" or any(each.startswith(held) for each in stop)
        for start in range(len(shown)):  # nothing shown may still become part of a stop string
            assert not any(each.startswith(text.text[start:]) for each in stop)


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("abcd", ["b"], "a"),
        ("abcd", ["abcd"], ""),
        ("abcd", ["cd", "bc"], "a"),
        ("abcd", ["d", "c"], "ab"),
        ("aaab", ["aab"], "a"),
        ("abab.", ["abac", "b."], "aba"),
        ("a b\n\nc", ["\n\n"], "a b"),
        ("é你🙂", ["你"], "é"),
        ("abc", ["x", "abcd"], "abc"),
    ],
)
def test_where_a_stop_string_cuts(text, stop, wanted):
    ids = byte_level()(text, add_special_tokens=False).input_ids
    streamed, pieces = stream(byte_level(), ids, stop)
    assert streamed.text == "".join(pieces) == wanted


# ---- through the decoder -------------------------------------------------------------------------

CONFIG = DecodingConfig(k=7, w=1.5, max_new_tokens=24, eos_token_ids=[])
PROMPTS = ["ab cd", "é", "a b c d e f g", "hallo"]


@pytest.fixture(scope="module", params=TOKENIZERS, ids=lambda f: f.__name__)
def pair(request):
    return ArgsDecoder(language_model(), reward_model("opt"), tokenizer=request.param())


def unstopped(pair, config=CONFIG):
    return pair.generate(PROMPTS, config)


def test_text_is_the_new_tokens_decoded(pair):
    for prompt, result in zip(PROMPTS, unstopped(pair), strict=True):
        assert result.prompt_token_ids == pair.tokenizer(prompt).input_ids
        assert result.prompt_token_ids[0] == pair.tokenizer.bos_token_id
        if pair.tokenizer is byte_level():
            assert result.text == decode(pair.tokenizer, result.token_ids)
        assert result.text


def test_a_text_and_its_ids_are_one_prompt(pair):
    # The ids are fixed once: a text that is tokenised again for every candidate may merge the
    # candidate into the prompt's last token, and is then the text of other tokens.
    without = ArgsDecoder(pair.language_model, pair.reward_model)
    again = []
    for prompt, result in zip(PROMPTS, unstopped(pair), strict=True):
        ids = pair.tokenizer(prompt).input_ids
        (same,) = without.generate(ids, CONFIG)
        assert same.token_ids == result.token_ids
        assert same.rewards == pytest.approx(result.rewards, abs=1e-4)
        assert same.text is None
        text = decode(pair.tokenizer, ids + result.token_ids)
        again.append(pair.tokenizer(text).input_ids == ids + result.token_ids)
    assert not all(again)  # the trap is there


def test_an_end_token_adds_no_text(pair):
    (free, *_) = unstopped(pair)
    eos = free.token_ids[9]
    (result,) = pair.generate(PROMPTS[0], dataclasses.replace(CONFIG, eos_token_ids=[eos]))
    assert result.finish_reason == "eos"
    kept = free.token_ids[: free.token_ids.index(eos) + 1]
    assert result.token_ids == kept


@pytest.mark.parametrize("length", [1, 2, 5])
def test_generation_stops_at_a_stop_string_in_each_prompt_on_its_own(pair, length):
    free = unstopped(pair)
    clean = free[0].text.replace(UNFINISHED, "")
    middle = len(clean) // 2
    config = dataclasses.replace(CONFIG, stop=[clean[middle : middle + length], "no such text"])
    results = pair.generate(PROMPTS, config)
    reasons = []
    for prompt, result, unbound in zip(PROMPTS, results, free, strict=True):
        count = len(result.token_ids)
        assert result.token_ids == unbound.token_ids[:count]
        (alone,) = pair.generate(prompt, config)
        assert (alone.token_ids, alone.text) == (result.token_ids, result.text)
        assert alone.finish_reason == result.finish_reason
        assert not any(stop in result.text for stop in config.stop)
        if result.finish_reason == "stop":
            assert unbound.text.startswith(result.text + config.stop[0])
            assert config.stop[0] not in decode(pair.tokenizer, result.token_ids[:-1])
        else:
            assert count == CONFIG.max_new_tokens
            assert result.text == unbound.text
        reasons.append(result.finish_reason)
    assert "stop" in reasons
    assert pair.cache.pages_in_use == 0


@pytest.mark.parametrize("stop", [(), "half"])
def test_the_pieces_of_a_stream_add_up_to_the_text(pair, stop):
    for prompt, free in zip(PROMPTS, unstopped(pair), strict=True):
        middle = len(free.text) // 2
        config = dataclasses.replace(CONFIG, stop=[free.text[middle:][:3]] if stop else ())
        (expected,) = pair.generate(prompt, config)
        pieces = list(pair.stream(prompt, config))
        assert [piece.token_id for piece in pieces] == expected.token_ids
        assert "".join(piece.text for piece in pieces) == expected.text
        assert pieces[-1].finish_reason == expected.finish_reason
