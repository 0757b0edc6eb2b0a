"""API keys: any of several, compared in constant time, and asked for at all but two addresses."""

import hmac

import pytest
from fake_engine import FakeEngine
from refusals import refuses
from served import ask

from args_fast.errors import ConfigError
from args_fast.serve import auth

KEYS = ("key-one", "key-two")
BODY = {"json": {"prompt": "Hello", "max_tokens": 1}}
CLOSED = [
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
]


def status(header, method="POST", path="/v1/completions"):
    headers = {} if header is None else {"Authorization": header}
    more = {"headers": headers} | (BODY if method == "POST" else {})
    (response,) = ask(FakeEngine(), (method, path, more), api_keys=KEYS)
    return response.status_code


@pytest.mark.parametrize("header", ["Bearer key-one", "Bearer key-two", "bearer key-one"])
def test_any_key_lets_in(header):
    assert status(header) == 200


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer key", "Bearer key-one-", "Basic key-one", "key-one"],
)
def test_anything_else_does_not(header):
    assert status(header) == 401


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_every_address_wants_a_key(method, path):
    assert status(None, method, path) == 401


@pytest.mark.parametrize("path", ["/", "/health"])
def test_page_and_probe_do_not(path):
    assert status(None, "GET", path) == 200


def test_refusal_is_openais_and_says_what_is_wanted():
    (response,) = ask(FakeEngine(), ("GET", "/v1/models", {}), api_keys=KEYS)
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "Authorization: Bearer KEY" in response.json()["error"]["message"]


def test_no_keys_means_no_check():
    (response,) = ask(FakeEngine(), ("GET", "/v1/models", {}))
    assert response.status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((len(a), len(b)))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    for header in ("Bearer key-one", "Bearer x", "Bearer " + "y" * 1000):
        compared.clear()
        status(header)
        assert compared == [(32, 32)] * len(KEYS)  # all of them, and of one length


def test_keys_come_from_options_and_files(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nc\n\nd  # of the batch job\nc\n")
    assert auth.read_keys(["a, b", "c"], file) == ("a", "b", "c", "d")
    assert auth.read_keys([], None) == ()
    file.write_text("# none\n")
    with refuses(ConfigError, "holds no API key"):
        auth.read_keys([], file)


def test_options_do_not_print_keys():
    from served import options

    assert "key-one" not in repr(options(api_keys=KEYS))
