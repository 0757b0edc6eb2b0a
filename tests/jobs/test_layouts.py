"""Every layout that people have gives its prompt, its options and its other keys."""

import json
import re

import pytest

from args_fast import DecodingConfig
from args_fast.errors import ArgsError
from args_fast.jobs.layouts import FORMATS, LAYOUTS, Reading, detect
from args_fast.jobs.lines import entries

DEFAULTS = DecodingConfig(max_new_tokens=5)
ASKED = {"role": "user", "content": "Hi"}
ANSWERED = {"role": "assistant", "content": "Hello"}
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: A walk?\n\nAssistant:"


def read(content, format="auto", **more):
    """(labels, request) of a line in the format that is found, or in the one given."""
    if format == "auto":
        format = detect(content, "prompt")
    line = json.dumps(content).encode()
    ((origin, request),) = entries([(1, line)], DEFAULTS, Reading(format, **more))
    return origin.labels, request


def prompt(content, format="auto", **more):
    _, request = read(content, format, **more)
    assert not isinstance(request, ArgsError), request
    return request[0]


def config(content):
    _, request = read(content)
    assert not isinstance(request, ArgsError), request
    return request[1]


def refused(content, format="auto", **more):
    _, error = read(content, format, **more)
    assert isinstance(error, ArgsError), error
    return str(error)


# ---- ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"prompt": "Hi"}, "Hi"),
        ({"prompt": [5, 6]}, [5, 6]),
        ({"prompt": [ASKED]}, [ASKED]),
        ({"messages": [ASKED, ANSWERED, ASKED]}, [ASKED, ANSWERED, ASKED]),
        ({"prompt": "Hi", "messages": [ASKED]}, "Hi"),
        ({"prompt": "Hi", "prompt_id": "p1", "chosen": [ASKED], "rejected": []}, "Hi"),
        ({"prompt": "Hi", "steps": 3, "labels": 1, "PROMPT": "x"}, "Hi"),
    ],
)
def test_lines_of_ours(content, wanted):
    assert detect(content, "prompt") == "jsonl"
    assert prompt(content) == wanted


def test_a_prompt_may_have_another_key():
    content = {"question": "Hi", "prompt": "no", "w": 2}
    assert prompt(content, "jsonl", prompt_field="question") == "Hi"
    assert read(content, "jsonl", prompt_field="question", keep=True)[0] == {
        "input": {"prompt": "no"}
    }


@pytest.mark.parametrize(
    ("content", "wanted"),
    [({"prompt": "Hi"}, [ASKED]), ({"prompt": [5]}, [5]), ({"messages": [ASKED]}, [ASKED])],
)
def test_chat_makes_messages_of_text_and_of_nothing_else(content, wanted):
    assert prompt(content, chat=True) == wanted


# ---- of others -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "format", "wanted"),
    [
        ({"custom_id": "a", "body": {"messages": [ASKED]}}, "openai", [ASKED]),
        ({"custom_id": "a", "body": {"prompt": "Hi"}}, "openai", "Hi"),
        ({"chosen": HH + " Park.", "rejected": HH + " No."}, "hh", HH),
        ({"chosen": [ASKED, ANSWERED], "rejected": [ASKED]}, "hh", [ASKED]),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "sharegpt", [ASKED]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Help."},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            "sharegpt",
            [{"role": "system", "content": "Help."}, ASKED],
        ),
        ({"conversations": [ASKED, ANSWERED]}, "sharegpt", [ASKED]),
        ({"instruction": "Hi", "output": "", "generator": "x"}, "alpacaeval", "Hi"),
        ({"instruction": "Hi", "input": "", "output": "x"}, "alpacaeval", "Hi"),
        ({"post_id": "x", "history": "Hi", "human_ref_A": "a", "labels": 1}, "shp", "Hi"),
    ],
)
def test_layouts_of_others(content, format, wanted):
    assert detect(content, "prompt") == format
    assert prompt(content) == prompt(content, format) == wanted


def test_messages_may_be_asked_for_where_there_is_a_prompt_too():
    assert prompt({"prompt": "Hi", "messages": [ASKED]}, "messages") == [ASKED]


@pytest.mark.parametrize("content", [{}, {"text": "Hi"}, {"question": "Hi"}])
def test_an_object_without_a_prompt_is_in_no_format(content):
    assert detect(content, "prompt") is None


def test_every_format_is_listed_and_explained():
    assert set(LAYOUTS) < set(FORMATS)
    assert set(FORMATS) - set(LAYOUTS) == {"auto", "jsonl", "csv", "text"}
    assert all(re.fullmatch(r"\S.*[^.]", layout.about) for layout in LAYOUTS.values())


@pytest.mark.parametrize(
    ("content", "format", "words"),
    [
        ({"text": "x"}, "jsonl", 'there is no "prompt"'),
        ({"prompt": "x"}, "hh", 'there is no "chosen", which the format hh needs'),
        ({"chosen": "Hi"}, "hh", "the prompt ends there"),
        ({"chosen": [ANSWERED]}, "hh", "no message before"),
        ({"chosen": None}, "hh", "chosen is null"),
        ({"conversations": []}, "sharegpt", "not empty"),
        ({"conversations": ["Hi"]}, "sharegpt", "not a JSON object"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "sharegpt", 'from "tool"'),
        ({"instruction": "Hi", "input": "x"}, "alpacaeval", "an input next to its instruction"),
        ({"messages": "Hi"}, "messages", "must be a list of messages"),
        ({"messages": []}, "messages", "not empty"),
        ({"history": ""}, "shp", "not empty"),
        ({"body": "x"}, "openai", "must be a JSON object"),
        ({"body": {}}, "openai", 'neither "messages" nor "prompt"'),
    ],
)
def test_a_line_that_is_not_in_its_format_is_an_error(content, format, words):
    assert words in refused(content, format)


# ---- options and other keys ----------------------------------------------------------------------


def test_openai_options_are_taken_by_our_names():
    body = {"model": "m", "messages": [ASKED], "max_tokens": 7, "temperature": 0, "seed": 3}
    body |= {"stop": ["."], "n": 2, "stream": True, "user": "u", "top_p": 0.9, "logit_bias": {}}
    body |= {"presence_penalty": 0.0, "tools": [], "response_format": {"type": "text"}}
    wanted = DecodingConfig(max_new_tokens=7, seed=3, stop=".", top_p=0.9, num_return_sequences=2)
    assert config({"body": body}) == wanted


def test_openai_nulls_are_defaults_and_args_are_ours():
    body = {"messages": [ASKED], "max_completion_tokens": 9, "temperature": None, "stop": None}
    body |= {"seed": None, "n": None, "top_p": None, "args": {"k": 3, "w": 2}}
    assert config({"body": body}) == DecodingConfig(max_new_tokens=9, k=3, w=2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"best_of": 2}, "best_of"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"echo": True}, "echo"),
        ({"min_p": 0.1}, "give args.min_p"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "give one of them"),
        ({"top_p": 1.9}, "top_p is 1.9"),
        ({"args": {"kk": 3}}, '"kk"'),
        ({"args": 3}, "3"),
        ({"max_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
    ],
)
def test_openai_options_that_would_change_the_answer_are_refused(more, words):
    assert words in refused({"body": {"messages": [ASKED]} | more})


def test_our_options_may_stand_in_any_line():
    assert config({"history": "Hi", "k": 3}) == DecodingConfig(k=3, max_new_tokens=5)


def test_ids_are_copied_and_other_keys_are_kept_where_asked_for():
    line = {"custom_id": "r1", "method": "POST", "url": "/v1", "body": {"messages": [ASKED]}}
    assert read(line)[0] == {"custom_id": "r1"}
    assert read(line, keep=True)[0] == {
        "custom_id": "r1",
        "input": {"method": "POST", "url": "/v1"},
    }
    line = {"id": 3, "history": "Hi", "post_id": "x", "k": 2}
    assert read(line, keep=True)[0] == {"id": 3, "input": {"post_id": "x"}}


@pytest.mark.parametrize("format", sorted(LAYOUTS))
def test_keys_of_others_are_data_even_where_they_look_like_options(format):
    key = LAYOUTS[format].key
    found = {
        "body": {"messages": [ASKED]},
        "messages": [ASKED],
        "conversations": [ASKED],
        "chosen": HH,
        "instruction": "Hi",
        "history": "Hi",
    }
    line = {key: found[key], "max_length": 7}
    if format == "messages":  # a format of ours
        assert "did you mean max_new_tokens?" in refused(line, format)
    else:
        assert prompt(line, format)
