"""One JSON line per request, joined to the client by an id, without a word of what was said."""

import io
import json
import logging

import pytest
from fake_engine import FakeEngine
from served import ask

from args_fast.serve import logs

SECRET = "zebra"
KEY = "key-of-the-house"


@pytest.fixture
def lines():
    """The lines that the server writes, read as JSON."""
    stream = io.StringIO()
    logs.set_up(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for name in ("args_fast.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True


def post(body, engine=None, headers=None, **given):
    more = {"json": body, "headers": {"Authorization": f"Bearer {KEY}", **(headers or {})}}
    request = ("POST", "/v1/completions?api_key=" + KEY, more)
    (response,) = ask(engine or FakeEngine(SECRET), request, api_keys=(KEY,), **given)
    return response


def test_request_has_one_line(lines):
    response = post({"prompt": SECRET, "max_tokens": 2, "args": {"k": 3}, "seed": 5})
    (line,) = lines()
    expected = {
        "level": "info",
        "event": "request",
        "request_id": response.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "samples": 1,
        "stream": False,
        "prompt_tokens": len(FakeEngine(SECRET).ids),
        "completion_tokens": 2,
        "k": 3,
        "w": 1.5,
        "temperature": None,
    }
    assert line == line | expected
    assert line["seconds"] >= line["first_token_seconds"] > 0
    assert line["time"].endswith("Z")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": SECRET, "echo": True},
        {"prompt": SECRET, "stream": True},
        {"prompt": [SECRET, 5]},
        {"prompt": SECRET, "logit_bias": {SECRET: 1}},
        {"prompt": SECRET, "stop": SECRET},
        {"prompt": SECRET, "model": SECRET},
        {"prompt": SECRET * 400},
    ],
)
def test_no_text_and_no_key_is_written(lines, body):
    post(body)
    written = json.dumps(lines())
    assert lines()
    assert SECRET not in written
    assert KEY not in written


@pytest.mark.parametrize("fail_after", [0, 1])
def test_failure_is_written_without_its_message(lines, fail_after):
    def fail():
        raise ValueError(f"cannot decode {SECRET!r}")

    try:
        fail()
    except ValueError as made:
        error = made
    engine = FakeEngine("one two", fail_after=fail_after, error=error)
    response = post({"prompt": SECRET, "stream": True}, engine)
    failure, request = lines()
    assert failure["event"] == "failure"
    assert failure["exception"] == "ValueError"
    assert any("in fail" in line for line in failure["traceback"])
    assert failure["request_id"] == request["request_id"] == response.headers["x-request-id"]
    assert SECRET not in json.dumps(lines())
    assert SECRET not in response.text


def test_prompts_are_written_where_asked_for(lines):
    post({"prompt": SECRET}, log_prompts=True)
    assert lines()[0]["prompts"] == [SECRET]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-123", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("{}", False)],
)
def test_clients_may_name_their_requests(lines, given, kept):
    response = post({"prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": given})
    assert (response.headers["x-request-id"] == given) is kept
    assert lines()[0]["request_id"] == response.headers["x-request-id"]


def test_probes_are_quiet_until_they_fail(lines):
    class Dead(FakeEngine):
        def __init__(self):
            super().__init__()
            self.alive = False

    ask(FakeEngine(), ("GET", "/health", {}), ("GET", "/metrics", {}))
    assert not lines()
    (response,) = ask(Dead(), ("GET", "/health", {}))
    assert response.status_code == 503
    assert lines()[0]["status"] == 503
