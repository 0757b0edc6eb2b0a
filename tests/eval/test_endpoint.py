"""An endpoint that misbehaves is asked again, or named; one that behaves is asked once."""

import time

import pytest
from chat_server import completion, served

from args_fast.eval.endpoint import LONGEST_WAIT, Endpoint, EndpointError, UnansweredError

ASKED = [{"role": "user", "content": "Which?"}]


def ask(url, **options):
    waits = []
    endpoint = Endpoint(url, "judge", sleep=waits.append, **{"timeout": 5.0, **options})
    return endpoint.ask(ASKED, seed=7, max_tokens=64), waits


def test_a_reply_comes_with_what_it_cost():
    with served(lambda body, number: "8 6") as (url, server):
        reply, waits = ask(url + "/")
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("8 6", 100, 10)
    assert waits == []
    (body,) = server.requests
    assert body["messages"] == ASKED
    assert (body["model"], body["seed"], body["max_tokens"]) == ("judge", 7, 64)
    assert body["temperature"] == 0


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}])
def test_a_server_that_does_not_count_costs_nothing_known(usage):
    answer = completion("8 6", usage=False) | {"usage": usage}
    with served(lambda body, number: answer) as (url, _):
        reply, _ = ask(url)
    assert (reply.prompt_tokens, reply.completion_tokens) == (0, 0)


FAILURES = {
    "429": 429,
    "500": 500,
    "503": (503, {"Retry-After": "soon"}),
    "not JSON": b"<html>busy</html>",
    "half of JSON": b'{"choices": [',
    "no choices": {"choices": []},
    "no message": {"choices": [{"text": "8 6"}]},
    "a list": b"[1, 2]",
    "null": b"null",
    "no text": completion(None),
    "empty text": completion("  "),
    "bad usage": completion("8 6") | {"usage": {"prompt_tokens": "many"}},
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_may_pass_is_asked_again(failure):
    with served(lambda body, number: "8 6" if number == 2 else failure) as (url, server):
        reply, waits = ask(url)
    assert reply.text == "8 6"
    assert len(server.requests) == 3
    assert len(waits) == 2
    assert 0 < waits[0] <= 1 <= waits[1] <= 2


def test_silence_is_asked_again():
    with served(lambda body, number: "8 6" if number else 1.0) as (url, server):
        reply, _ = ask(url, timeout=0.2)
    assert reply.text == "8 6"
    assert len(server.requests) == 2


@pytest.mark.parametrize(("asked", "waited"), [("7", 7), ("1e9", LONGEST_WAIT)])
def test_retry_after_is_obeyed_within_reason(asked, waited):
    respond = lambda body, number: "8 6" if number else (429, {"Retry-After": asked})  # noqa: E731
    with served(respond) as (url, _):
        _, waits = ask(url)
    assert waits == [waited]


def test_tries_come_to_an_end_and_name_the_last_reason():
    with (
        served(lambda body, number: 500) as (url, server),
        pytest.raises(UnansweredError, match=r"no usable reply in 3 tries; the last one: HTTP 500"),
    ):
        ask(url, tries=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (400, UnansweredError, "answered HTTP 400: .*as told"),
        (422, UnansweredError, "answered HTTP 422"),
        (401, EndpointError, "answered HTTP 401: .*; set JUDGE_KEY"),
        (403, EndpointError, "answered HTTP 403"),
        (404, EndpointError, "answered HTTP 404"),
    ],
)
def test_a_refusal_is_final(monkeypatch, status, error, says):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with served(lambda body, number: status) as (url, server), pytest.raises(error, match=says):
        ask(url, key_variable="JUDGE_KEY")
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_named():
    with served(lambda body, number: "8 6") as (url, _):
        pass
    with pytest.raises(UnansweredError, match="no usable reply in 2 tries"):
        ask(url, tries=2)


def test_an_endpoint_is_a_url():
    with pytest.raises(EndpointError, match="must be a URL such as https"):
        Endpoint("file:///etc/passwd", "judge")


@pytest.mark.parametrize(("key", "sent"), [("abc", "Bearer abc"), (None, None)])
def test_the_key_comes_from_the_environment(monkeypatch, key, sent):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if key:
        monkeypatch.setenv("JUDGE_KEY", key)
    with served(lambda body, number: "8 6") as (url, server):
        ask(url, key_variable="JUDGE_KEY")
    assert server.headers[0].get("Authorization") == sent


def test_requests_are_paced():
    with served(lambda body, number: "8 6") as (url, server):
        endpoint = Endpoint(url, "judge", per_minute=60 / 0.05, sleep=time.sleep)
        for seed in range(4):
            endpoint.ask(ASKED, seed=seed, max_tokens=8)
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert min(gaps) > 0.03
