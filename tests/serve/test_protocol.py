"""Which requests are taken, and what the refused ones are told."""

import pytest
from fake_engine import FakeEngine
from served import ask, chat, complete

from args_fast.openai_fields import IN_ARGS, NEUTRAL, OPENAI_NAMES
from args_fast.serve.protocol import ArgsOptions

PROMPT = {"prompt": "Hello"}


def refusal(response, status=400):
    """The error of a refused request; every one has OpenAI's four fields."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def config_of(body, **more):
    engine = FakeEngine()
    response = complete(PROMPT | body, engine, **more)
    assert response.status_code == 200, response.text
    return engine.requests[0][1]


@pytest.mark.parametrize("field", sorted(set(NEUTRAL) - IN_ARGS))
def test_unsupported_field_is_refused_by_name(field):
    error = refusal(complete(PROMPT | {field: {"type": "json_schema"}}))
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize("field", NEUTRAL)
def test_unsupported_field_may_be_neutral(field):
    for value in (None, *NEUTRAL[field]):
        assert complete(PROMPT | {field: value}).status_code == 200


def test_unknown_field_is_ignored():
    body = {"user": "someone", "store": False, "field_of_2031": {"a": [1]}}
    assert complete(PROMPT | body).status_code == 200
    assert chat(body).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"args": {"q": 1}}, "'q' is not an option of args; those are k, w"),
        ({"args": {"temperature": 1.0}}, "give temperature of the request"),
        ({"args": {"max_new_tokens": 5}}, "give max_tokens of the request"),
        ({"args": {"k": "10"}}, "args.k: input should be a valid integer"),
        ({"args": {"k": 10.5}}, "args.k"),
        ({"args": {"k": 0}}, "k is 0; it must be a whole number from 1 to 128"),
        ({"args": {"k": 129}}, "k is 129"),
        ({"args": {"w": True}}, "args.w"),
        ({"args": [1]}, "args"),
        ({"args": {"reward": 5}}, "args.reward"),
        ({"args": {"reward": {}}}, "reward is {}"),
        ({"args": {"min_p": 2}}, "min_p is 2"),
        ({"min_p": 0.1}, "give args.min_p"),
        ({"top_p": 0}, "top_p is 0.0; it must be a number, above 0 to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"args": {"top_p": 0.5}}, "give top_p of the request"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "give one of them"),
        ({"n": 0}, "n: "),
        ({"n": 17}, "n is 17; this server gives at most 16"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop: it must be a string of 1 to 256 characters"),
        ({"stop": ["x"] * 17}, "a list of up to 16"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 11}, "11 alternatives per token are asked for, but a step has args.k = 10"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt": 5}, "prompt: it must be a string, a list of strings"),
        ({"prompt": []}, "not empty"),
        ({"prompt": [[]]}, "not empty"),
        ({"prompt": ["a", [5]]}, "prompt"),
        ({"prompt": [5, 1536]}, "contains 1536, which is not a valid token id (valid: 0 to 1535)"),
        ({"prompt": [-1]}, "contains -1"),
        ({"prompt": ""}, "the prompt '' is empty"),
        (
            {"prompt": [5] * 65},
            "length is 64 tokens, the answer's among them, but the prompt has 65",
        ),
        ({"prompt": [5] * 64}, "the prompt has 64"),
        ({"prompt": [5] * 60, "max_tokens": 5}, "set max_tokens to at most 4"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"echo": "no"}, "echo"),
    ],
)
def test_bad_value_is_refused_with_what_is_allowed(body, said):
    error = refusal(complete(PROMPT | body))
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        ([{"role": "tool", "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": None}], "it must be a string, or a list of parts"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://x"}}],
                }
            ],
            "a part of type 'image_url'; this server takes text only",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "text only"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}], "tool_calls"),
        ([{"role": "user", "content": "x"}] * 4097, "messages"),
    ],
)
def test_bad_conversation_is_refused(messages, said):
    assert said in refusal(chat({"messages": messages}))["message"]


def test_top_logprobs_needs_logprobs():
    assert refusal(chat({"top_logprobs": 3}))["param"] == "top_logprobs"
    assert "max_tokens is 0" in refusal(chat({"max_tokens": 0}))["message"]


def test_parts_of_text_and_the_developer_role_are_taken():
    engine = FakeEngine()
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    whole = [{"role": "user", "content": "Hello\nthere"}]
    for messages in ([{"role": "user", "content": parts}], whole):
        first = [{"role": "developer", "content": "Be kind."}]
        assert chat({"messages": first + messages}, engine).status_code == 200
    assert engine.requests[0][0] == engine.requests[1][0]


@pytest.mark.parametrize(
    ("content", "type", "said"),
    [
        (b"{", "application/json", "not JSON"),
        (b"", "application/json", "body"),
        (b"[]", "application/json", "body"),
        (b"[" * 100_000, "application/json", "body"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "application/json", "body"),
        (b'{"prompt": "x", "temperature": NaN}', "application/json", "temperature"),
        (b'{"prompt": "x", "args": {"w": Infinity}}', "application/json", "w is inf"),
        (b'{"prompt": "x", "\\ud800": 1}', "application/json", "surrogate"),
        (b'{"prompt": "x", "args": {"\\ud800": 1}}', "application/json", "args"),
        (b'{"prompt": "x", "model": "\\ud800"}', "application/json", "no model"),
        (b'{"prompt": "\\ud800"}', "application/json", "surrogate"),
        (b'{"prompt": "\xff"}', "application/json", "body"),
        (b'{"prompt": "x"}', "text/plain", "Content-Type: application/json"),
    ],
)
def test_body_that_is_not_a_json_object_is_refused(content, type, said):
    more = {"content": content, "headers": {"Content-Type": type}}
    (response,) = ask(FakeEngine(), ("POST", "/v1/completions", more))
    assert said in refusal(response, 404 if said == "no model" else 400)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/" + "x" * 5000, 404),
    ],
)
def test_unknown_address_is_answered_in_the_same_shape(method, path, status):
    (response,) = ask(FakeEngine(), (method, path, {}))
    assert len(refusal(response, status)["message"]) < 400


def test_model_that_is_not_here_is_a_404():
    error = refusal(complete(PROMPT | {"model": "gpt-9"}), 404)
    assert error["code"] == "model_not_found"
    assert "'gpt-9'" in error["message"]


def test_every_name_of_the_model_is_answered_with_it():
    names = {"model_names": ("a", "b/c")}
    for name in ("a", "b/c"):
        assert complete(PROMPT | {"model": name}, **names).json()["model"] == name
    assert complete(PROMPT, **names).json()["model"] == "a"
    (listed, one) = ask(
        FakeEngine(), ("GET", "/v1/models", {}), ("GET", "/v1/models/b/c", {}), **names
    )
    assert [each["id"] for each in listed.json()["data"]] == ["a", "b/c"]
    assert one.json()["max_model_len"] == 64


def test_fields_reach_the_engine():
    config = config_of(
        {
            "max_tokens": 3,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 5,
            "stop": ["x", "y"],
            "args": {"k": 4, "w": -2, "eos_token_ids": [7], "min_p": 0.1, "reward": {"a": 1}},
        }
    )
    assert (config.k, config.w, config.temperature) == (4, -2, 0.7)
    assert (config.max_new_tokens, config.seed, config.stop) == (3, 5, ("x", "y"))
    assert (config.top_p, config.min_p, config.reward) == (0.9, 0.1, {"a": 1})
    assert config.eos_token_ids == (7,)


def test_defaults_are_argmax_and_what_fits():
    config = config_of({"temperature": 0})
    assert (config.k, config.w, config.temperature) == (10, 1.5, None)
    assert config.max_new_tokens == 64 - len(FakeEngine("Hello").ids)
    assert not config.return_candidates
    assert config_of({"args": {"return_candidates": True}}).return_candidates
    assert config_of({"top_p": 1}).top_p is None
    assert config.eos_token_ids is None
    assert config_of({"ignore_eos": True}).eos_token_ids == ()
    assert config_of({"max_completion_tokens": 4}).max_new_tokens == 4


def test_absent_seed_is_drawn_and_reported():
    choices = [complete(PROMPT | {"temperature": 1}).json()["choices"][0] for _ in range(2)]
    first, second = (choice["args"]["seed"] for choice in choices)
    assert first != second
    assert config_of({"seed": first}).seed == first


def test_args_are_the_fields_of_the_config():
    assert {"k", "w"} <= set(ArgsOptions.model_fields)
    assert not set(ArgsOptions.model_fields) & set(OPENAI_NAMES)
