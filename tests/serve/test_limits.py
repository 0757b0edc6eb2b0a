"""Bodies, counts and places are bounded, and who is beyond a bound is told which."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
from fake_engine import FakeEngine
from refusals import refuses
from served import ask, complete, on_loopback, options

from args_fast.errors import ConfigError
from args_fast.serve.app import create_app
from args_fast.serve.engine_view import EngineView
from args_fast.serve.errors import ApiError
from args_fast.serve.limits import Admission


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/health"]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_body_beyond_the_limit_is_refused(path, chunked):
    body = b" " * 3000

    async def parts():
        for start in range(0, len(body), 500):
            yield body[start : start + 500]

    content = parts() if chunked else body
    (response,) = ask(FakeEngine(), ("POST", path, {"content": content}), max_body=2048)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert "takes 2048" in response.json()["error"]["message"]


def test_body_at_the_limit_is_taken():
    body = json.dumps({"prompt": "Hello"}).encode().ljust(2048)
    more = {"content": body, "headers": {"Content-Type": "application/json"}}
    (response,) = ask(FakeEngine(), ("POST", "/v1/completions", more), max_body=2048)
    assert response.status_code == 200


def test_body_that_does_not_come_is_not_waited_for():
    with on_loopback(FakeEngine(), body_seconds=0.1) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch):
    engine = FakeEngine()
    text = "a" * 200_000
    app = create_app(engine, options())
    prompts = app.state.service.prompts
    monkeypatch.setattr(engine.encoder, "encode", lambda *_: pytest.fail("tokenised"))
    assert len(text) > prompts.longest_text

    async def work():
        for encoding in (
            prompts.encode(text),
            prompts.encode_chat([{"role": "user", "content": text[:100_000]}] * 2),
        ):
            with refuses(ApiError, "has more"):
                await encoding

    asyncio.run(work())


def test_overload_is_a_429_with_the_time_to_wait():
    async def work():
        engine = FakeEngine(max_waiting=1, hold=asyncio.Event())
        app = create_app(engine, options())
        transport = httpx.ASGITransport(app)
        body = {"prompt": "Hello", "max_tokens": 2}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            under_way = [
                asyncio.ensure_future(client.post("/v1/completions", json=body | {"n": n}))
                for n in (2, 1)
            ]
            while engine.streams < 3:
                await asyncio.sleep(0.005)
            refused = await client.post("/v1/completions", json=body)
            healthy = await client.get("/health")
            engine.hold.set()
            answers = await asyncio.gather(*under_way)
            after = await client.post("/v1/completions", json=body)
        return refused, healthy, [*answers, after]

    refused, healthy, answers = asyncio.run(asyncio.wait_for(work(), 30))
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "overloaded"
    assert healthy.status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_request_that_can_never_be_taken_is_a_400():
    engine = FakeEngine(max_waiting=1)
    response = complete({"prompt": ["a"] * 4}, engine)
    assert response.status_code == 400
    assert "asks for 4 answers (prompts times n); this server takes 3" in response.text


def test_places_are_given_back_whatever_happens():
    admission = Admission(3)

    async def work():
        with pytest.raises(KeyError), admission.admit(2):
            raise KeyError
        with (
            admission.admit(3),
            refuses(ApiError, "3 of 3 places are taken and 1 are asked for"),
            admission.admit(1),
        ):
            pass
        with admission.admit(3):
            pass

    asyncio.run(work())
    assert admission.taken == 0


def test_loop_is_free_while_a_prompt_is_tokenised():
    """However long a tokenizer or a template takes, other requests are answered."""
    engine = FakeEngine()
    entered, release = threading.Event(), threading.Event()
    with on_loopback(engine) as (url, _):
        encode = engine.encoder.encode

        def slow(*arguments):
            entered.set()
            assert release.wait(20)
            return encode(*arguments)

        engine.encoder.encode = slow
        answers = []
        body = {"prompt": "Hello", "max_tokens": 2}
        slow_one = threading.Thread(
            target=lambda: answers.append(
                httpx.post(url + "/v1/completions", json=body, timeout=30)
            )
        )
        slow_one.start()
        assert entered.wait(20)
        for _ in range(3):
            assert httpx.get(url + "/health").status_code == 200
            ids = httpx.post(url + "/v1/completions", json=body | {"prompt": [5, 6]})
            assert ids.status_code == 200
        release.set()
        slow_one.join(20)
        assert answers[0].status_code == 200


def test_largest_texts_do_not_stall_the_loop(served, client):
    """Real tokenizing of what a body can hold: the loop keeps answering meanwhile."""
    url, service = served
    text = "\n\nHuman: (a+)+$ {{ 7 * 7 }} " * (service.prompts.longest_text // 32)
    done = threading.Event()

    def ask_for_it():
        httpx.post(url + "/tokenize", json={"prompt": text}, timeout=60)
        done.set()

    threading.Thread(target=ask_for_it).start()
    slowest = 0.0
    while not done.is_set():
        began = time.perf_counter()
        assert client.get("/health").status_code == 200
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 1  # of a busy machine; one that stalled would wait for all of the text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_model_len": 1}, "max_model_len is 1; it must be at least 2"),
        ({"max_waiting": -1}, "max_waiting is -1"),
        ({"max_body": 10}, "max_body is 10"),
        ({"limit_n": 0}, "limit_n is 0"),
        ({"drain_seconds": -1.0}, "drain_seconds is -1"),
        ({"drain_seconds": float("nan")}, "drain_seconds is nan"),
        ({"model_names": ()}, "no name"),
        ({"model_names": ("",)}, "no name"),
        ({"api_keys": ("",)}, "API key"),
        ({"api_keys": ("schlüssel",)}, "API key"),
    ],
)
def test_bad_option_is_refused(given, said):
    with refuses(ConfigError, said):
        options(**given)


def test_model_len_is_what_fits(alone):
    with refuses(ConfigError, "max_model_len is 513", "take 512"):
        EngineView(alone, max_model_len=513)


def test_decoder_without_a_tokenizer_cannot_serve():
    from tiny_models import decoder

    with refuses(ConfigError, "without a tokenizer"):
        EngineView(decoder())
