"""Clients that leave: their pages are free at once, and the others never notice."""

import asyncio
import contextlib
import json
import re
import socket
import time

import pytest
from fake_engine import FakeEngine
from served import options

from args_fast.serve.answer import Answer
from args_fast.serve.protocol import CompletionRequest
from args_fast.serve.service import Service

LONG = {"prompt": "\n\nHuman: Tell me about basil.\n\nAssistant:", "ignore_eos": True}


def wait_for(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.01)


def idle_engine(service):
    engine = service.engine
    return not (engine.running or engine.waiting or engine.cache.pages_in_use)


def idle(service):
    return idle_engine(service) and not service.admission.taken


@contextlib.contextmanager
def raw_request(url, body):
    """A socket with a request on its way."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    length = f"Content-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}{length}".encode() + data)
        yield connection


def generated(client):
    """Number of tokens that the server has decoded so far."""
    page = client.get("/metrics").text
    return float(re.search(r"generation_tokens_total\{.*?\} (\S+)", page)[1])


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_its_pages(served, client, stream):
    url, service = served
    before = generated(client)
    with raw_request(url, LONG | {"stream": stream, "n": 3, "temperature": 1.0}):
        wait_for(lambda: service.engine.cache.pages_in_use > 0)
    wait_for(lambda: idle(service))
    assert generated(client) - before < 3 * 400  # each would have 490


def seconds(client, body, times=3):
    """The quickest of some answers to one request, and the answer."""
    quickest, choices = float("inf"), None
    for _ in range(times):
        began = time.perf_counter()
        choices = client.post("/v1/completions", json=body).json()["choices"]
        quickest = min(quickest, time.perf_counter() - began)
    return quickest, choices


def test_200_clients_give_up_and_the_next_is_answered_in_its_usual_time(served, client):
    url, service = served
    body = {"prompt": "Hello", "max_tokens": 5, "seed": 0}
    usual, expected = seconds(client, body)
    before = generated(client)
    with contextlib.ExitStack() as stack:
        for i in range(200):
            stack.enter_context(raw_request(url, LONG | {"stream": i % 2 == 0}))
        time.sleep(0.5)  # and they leave
    wait_for(lambda: idle(service))
    assert generated(client) - before < 200 * 400  # each would have 490
    after, choices = seconds(client, body)
    assert choices == expected
    assert after < 5 * usual + 0.2  # of a busy machine; what was left would take minutes


def test_client_that_reads_a_byte_a_second_slows_no_one(served, client):
    url, service = served
    body = {"prompt": "Hello", "max_tokens": 20, "seed": 0}
    usual, expected = seconds(client, body)
    with raw_request(url, LONG | {"stream": True, "n": 2, "temperature": 1.0}) as slow:
        assert slow.recv(1)
        wait_for(lambda: idle_engine(service), 60)  # its tokens wait in the server, not its pages
        for _ in range(3):
            time.sleep(1)
            assert slow.recv(1)
            during, choices = seconds(client, body, 1)
            assert choices == expected
            assert during < 5 * usual + 0.2
    wait_for(lambda: idle(service))


def test_stream_closed_in_the_middle(served, client):
    _, service = served
    for _ in range(5):
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            assert next(response.iter_lines()).startswith("data: ")
        wait_for(lambda: idle(service))


def test_client_that_waits_for_its_turn_may_leave(served):
    url, service = served
    places = service.engine.max_batch_size
    with contextlib.ExitStack() as stack:
        for _ in range(places + 3):
            stack.enter_context(raw_request(url, LONG))
        wait_for(lambda: service.engine.waiting == 3)
    wait_for(lambda: idle(service))


def test_client_that_never_reads_holds_no_pages():
    """Tokens wait in the server for a slow client; the engine does not wait for it."""

    async def work():
        engine = FakeEngine("one two three four")
        service = Service(engine, options())
        body = CompletionRequest(prompt="Hello", stream=True, n=2)
        answer = Answer(service, body, 1, lambda began: service.prepare_completion(body, began))
        blocked, gone = asyncio.Event(), asyncio.Event()

        async def send(message):
            if message["type"] == "http.response.body":
                blocked.set()
                await asyncio.Event().wait()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        answering = asyncio.ensure_future(answer({"type": "http"}, receive, send))
        await blocked.wait()
        while engine.streams:
            await asyncio.sleep(0.001)
        assert not answering.done()
        assert service.admission.taken == 2  # it counts as long as its answer is held
        gone.set()
        await answering
        service.prompts.close()
        return service.admission.taken

    assert asyncio.run(asyncio.wait_for(work(), 30)) == 0
