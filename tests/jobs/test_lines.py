"""A line becomes a request or an error, and never anything else."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from args_fast import DecodingConfig
from args_fast.errors import ArgsError, ConfigError, LineError
from args_fast.jobs import lines as subject
from args_fast.jobs.layouts import Reading
from args_fast.jobs.lines import configured, entries, load_config, numbered

DEFAULTS = DecodingConfig(k=7, w=2.0, stop=("\n",))


def read(line, **reading):
    ((origin, request),) = entries([(5, line)], DEFAULTS, Reading(**reading))
    assert origin.line == 5
    return origin.labels, request


def refused(line, **reading):
    labels, error = read(line, **reading)
    assert isinstance(error, ArgsError)
    return labels, str(error)


def test_a_line_of_a_prompt_has_the_defaults():
    assert read(b'{"prompt": "ab"}\n') == ({}, ("ab", DEFAULTS))


def test_a_prompt_may_be_ids():
    assert read(b'{"prompt": [3, 1]}') == ({}, ([3, 1], DEFAULTS))


def test_a_line_may_override_every_option():
    overrides = {
        "k": 3,
        "w": 0,
        "temperature": 0.5,
        "max_new_tokens": 9,
        "seed": 4,
        "eos_token_ids": [1],
        "stop": ["x", "y"],
        "return_candidates": True,
        "num_return_sequences": 2,
        "top_p": 0.9,
        "min_p": 0.1,
        "reward": {"a": 0.5},
        "every": 2,
        "certain": 0.9,
    }
    assert set(overrides) == set(subject.OPTIONS)
    _, (_, config) = read(json.dumps({"prompt": "a"} | overrides).encode())
    assert config == DecodingConfig(**overrides)


def test_an_option_may_be_taken_back_to_none():
    (_, (_, config)) = next(
        entries(
            [(1, b'{"prompt": "a", "temperature": null}')],
            DecodingConfig(temperature=1.0),
            Reading(),
        )
    )
    assert config.temperature is None


@pytest.mark.parametrize("label", ["x", None, 3, [1, {"a": "ü"}], {}])
def test_the_id_is_copied_whatever_it_is(label):
    labels, _ = read(json.dumps({"prompt": "a", "id": label}).encode())
    assert labels == {"id": label}


def test_an_error_keeps_the_id():
    labels, _ = refused(b'{"id": 7}')
    assert labels == {"id": 7}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"hello", "not JSON: Expecting value at character 0"),
        (b'{"prompt": "a"', "not JSON"),
        (b'{"prompt": "a"} {}', "not JSON"),
        (b'"hello"', 'not a JSON object but "hello"'),
        (b"[1, 2]", "not a JSON object"),
        (b"{}", 'there is no "prompt"; it is a text, a list of ids, or a list of messages'),
        (b'{"prompt": ""}', "not empty"),
        (b'{"prompt": []}', "not empty"),
        (b'{"prompt": null}', "the prompt is null"),
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte at byte 12"),
        (b'{"prompt": "a", "k": 0}', "k is 0; it must be a whole number from 1 to 128"),
        (b'{"prompt": "a", "k": "9"}', "k is '9'"),
        (b'{"prompt": "a", "w": NaN}', "NaN does not exist in JSON"),
        (b'{"prompt": "a", "w": 1e999}', "w is inf"),
        (b'{"prompt": "a", "w": 1' + b"0" * 400 + b"}", "a finite number"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "not JSON that can be read"),
        (b'{"prompt": "a", "stop": 5}', "stop is 5"),
        (b'{"prompt": "a", "eos_token_ids": 2}', "eos_token_ids is 2"),
        (b'{"prompt": "a", "eos_token_ids": 2.5}', "eos_token_ids is 2.5"),
        (b'{"prompt": "a", "tempratur": 1}', "did you mean temperature?"),
        (b'{"prompt": "a", "K": 1}', "did you mean k?"),
        (b'{"prompt": "a", "max_tokens": 1}', "did you mean max_new_tokens?"),
        (b'{"prompt": "a", "top_k": 5}', "did you mean k?"),
        (b'{"prompt": "a", "temperature": "warm"}', "temperature is 'warm'"),
        (b'{"prompt": "a", "id": 1e999}', "its id cannot be copied"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_an_error_that_says_why(line, words):
    assert words in refused(line)[1]


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["prompt", "id", *subject.OPTIONS]) | st.text(), inner
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_line_is_too_strange(line):
    for _, request in entries([(1, line)], DEFAULTS, Reading()):
        assert isinstance(request, (tuple, LineError, ConfigError))


@given(st.lists(st.sampled_from([b"{}", b"", b"  ", b"a\rb", b"\x0c"])), st.booleans())
def test_lines_are_numbered_as_an_editor_does_and_blank_ones_left_out(content, ended):
    text = b"\n".join(content) + (b"\n" if ended else b"")
    expected = [(i, line) for i, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    assert [(n, line.rstrip(b"\n")) for n, line in numbered(io.BytesIO(text))] == expected


@pytest.mark.parametrize("length", [9, 10, 11, 12, 22, 23, 100])
def test_a_line_without_end_fills_no_memory(length, monkeypatch):
    monkeypatch.setattr(subject, "MAX_LINE", 10)
    text = b"a\n" + b"x" * length + b"\nb\n"
    (first, long, last) = numbered(io.BytesIO(text))
    assert first == (1, b"a\n")
    assert last == (3, b"b\n")
    assert long[0] == 2
    assert len(long[1]) <= 11
    message = refused(long[1])[1]
    assert ("longer than 10 bytes" in message) == (length >= 10)


def test_a_config_file_holds_options(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"k": 3, "stop": "x"}')
    assert configured(DEFAULTS, load_config(path)) == DecodingConfig(k=3, w=2.0, stop=("x",))


@pytest.mark.parametrize(
    ("text", "words"),
    [("[]", "not a JSON object"), ("{", "not JSON"), ('{"kk": 1}', 'holds "kk"')],
)
def test_a_config_file_of_another_kind_is_refused(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json") as error:
        load_config(path)
    assert words in str(error.value)
