"""Streams: the grammar of their events, and what happens where something fails in the middle."""

import asyncio
import json
import time

import pytest
from fake_engine import FakeEngine
from served import chat, complete, events

from args_fast.errors import DecoderClosedError, LengthError, NonFiniteError
from args_fast.serve import streaming
from args_fast.tiny_pair import HELDOUT

PROMPTS = [json.loads(line)["prompt"] for line in HELDOUT.read_text().splitlines()[:3]]
STREAM = {"prompt": "Hello", "stream": True}


def choices(stream):
    return [choice for event in stream for choice in event["choices"]]


def test_chat_stream_has_the_role_first_and_the_reason_last():
    response = chat({"stream": True}, FakeEngine("one two"))
    assert response.headers["content-type"].startswith("text/event-stream")
    stream = events(response.text)
    assert {event["object"] for event in stream} == {"chat.completion.chunk"}
    assert len({event["id"] for event in stream}) == 1
    head, *middle, last = choices(stream)
    assert head["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in [*middle, last])
    assert all(choice["finish_reason"] is None for choice in [head, *middle])
    assert (last["delta"], last["finish_reason"]) == ({}, "length")
    assert last["args"]["finish_reason"] == "length"
    assert "".join(choice["delta"]["content"] for choice in middle) == "one two"


@pytest.mark.parametrize("n", [1, 3])
def test_stream_adds_up_to_the_whole_answer(client, n):
    body = {"prompt": PROMPTS, "max_tokens": 9, "n": n, "temperature": 0.8, "seed": 1}
    whole = client.post("/v1/completions", json=body).json()
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        stream = choices(events(response.read().decode()))
    for choice in whole["choices"]:
        own = [each for each in stream if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert [each["finish_reason"] for each in own][:-1] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert own[-1]["args"]["seed"] == choice["args"]["seed"]
        ids = [token for each in own for token in each["args"].get("token_ids", [])]
        assert ids == choice["args"]["token_ids"]


def test_usage_is_a_last_chunk_where_asked_for():
    stream = events(complete(STREAM | {"stream_options": {"include_usage": True}}).text)
    *others, last = stream
    assert last["choices"] == []
    new = len(FakeEngine("Hello").ids)
    assert last["usage"] == {
        "prompt_tokens": new,  # the same text
        "completion_tokens": new,
        "total_tokens": 2 * new,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert all(event["usage"] is None for event in others)
    always = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        event["usage"]["completion_tokens"]
        for event in events(complete(STREAM | {"stream_options": always}).text)
    ]
    assert counts == sorted(counts)
    assert counts[-1] == new
    assert all("usage" not in event for event in events(complete(STREAM).text))


def test_characters_are_never_split():
    text = "für 😀 und 你好"
    stream = choices(events(complete(STREAM, FakeEngine(text)).text))
    pieces = [choice["text"] for choice in stream]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "" in pieces  # some token had to wait


def test_stop_string_is_never_shown_in_part():
    stream = choices(events(complete(STREAM | {"stop": "wo m"}, FakeEngine("one two more")).text))
    assert "".join(choice["text"] for choice in stream) == "one t"
    assert stream[-1]["finish_reason"] == "stop"
    assert stream[-1]["args"]["finish_reason"] == "stop"


def test_echo_comes_before_the_first_token():
    body = STREAM | {"echo": True, "logprobs": 1}
    head, *others = choices(events(complete(body, FakeEngine(" a")).text))
    assert head["text"] == "Hello"
    assert head["logprobs"]["token_logprobs"][0] is None
    assert others[0]["logprobs"]["text_offset"] == [5]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (LengthError("too long"), 400, "context_length_exceeded"),
        (DecoderClosedError("closed"), 503, "engine_stopped"),
        (NonFiniteError("NaN"), 500, "NonFiniteError"),
        (MemoryError("secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_token_has_a_status(error, status, code, stream):
    engine = FakeEngine(fail_after=0, error=error)
    response = complete({"prompt": "Hello", "stream": stream}, engine)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert "secret" not in response.text
    assert engine.streams == 0


def test_failure_in_the_middle_is_an_event():
    engine = FakeEngine("one two three", fail_after=2, error=NonFiniteError("the reward is NaN"))
    response = complete(STREAM | {"n": 2}, engine)
    assert response.status_code == 200
    *before, last = events(response.text)
    assert before
    assert last["error"]["message"] == "the reward is NaN"
    assert "[DONE]" not in response.text
    assert engine.streams == 0


def test_stream_that_waits_long_begins_before_its_first_token(monkeypatch):
    monkeypatch.setattr(streaming, "PATIENCE", 0.05)

    class Late(FakeEngine):
        async def stream(self, prompt, config):
            await asyncio.sleep(0.3)
            async for token in super().stream(prompt, config):
                yield token

    sent = []

    async def send(message):
        sent.append((time.perf_counter() - began, message))

    async def work():
        from served import options

        from args_fast.serve.answer import Answer
        from args_fast.serve.protocol import ChatRequest
        from args_fast.serve.service import Service

        service = Service(Late(), options())
        body = ChatRequest(messages=[{"role": "user", "content": "Hello"}], stream=True)
        answer = Answer(service, body, 1, lambda began: service.prepare_chat(body, began))

        async def receive():
            await asyncio.sleep(60)

        await answer({"type": "http"}, receive, send)

    began = time.perf_counter()
    asyncio.run(work())
    times = [at for at, message in sent]
    assert times[0] < times[1] < 0.3 < times[2]  # the header and the role, then the first token
