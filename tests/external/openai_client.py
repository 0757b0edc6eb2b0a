"""The official client, of whatever version is installed: every route, streams, errors, retries."""

import asyncio
import os
import threading
import time

import openai
from openai import AsyncOpenAI, OpenAI

URL, NARROW = (os.environ[name] + "/v1" for name in ("ARGS_URL", "ARGS_NARROW_URL"))
KEY, MODEL = os.environ["ARGS_KEY"], "args-fast-tiny"
MESSAGES = [{"role": "user", "content": "How do I grow basil?"}]
LONG = {"model": MODEL, "prompt": "Hello", "extra_body": {"ignore_eos": True}}

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)


def typed(answer):
    """The answer fits the client's own types, which it does not check by itself."""
    fields = answer.to_dict()
    if fields["object"] == "text_completion":
        for choice in fields["choices"]:  # null in OpenAI's own streams, and not in this type
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    type(answer).model_validate(fields)
    return answer


def test_models():
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert typed(client.models.retrieve(MODEL)).owned_by == "args-fast"


def test_chat():
    answer = typed(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=8,
            extra_body={"args": {"k": 5, "w": 2.0}},
        )
    )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert len(choice.args["rewards"]) == answer.usage.completion_tokens == 8
    assert answer._request_id


def test_chat_of_several_and_again():
    asked = {"model": MODEL, "messages": MESSAGES, "n": 3, "temperature": 0.9, "seed": 4}
    first, second = (
        typed(client.chat.completions.create(max_completion_tokens=8, **asked)) for _ in range(2)
    )
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1


def test_chat_logprobs():
    answer = typed(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=0
        )
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 3
    assert all(each.logprob <= 0 for each in content)


def test_chat_stream():
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    stream = list(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    )
    for chunk in stream:
        typed(chunk)
    *chunks, last = stream
    assert last.choices == []
    assert last.usage.completion_tokens == 12
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]


def test_chat_stream_helper():
    if not hasattr(client.chat.completions, "stream"):
        return
    with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        stop=".",  # it is an error for it to end by its length
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content


def test_completions():
    answer = typed(
        client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=4, logprobs=0)
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.token_logprobs) == 4
    by_ids = typed(client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=4))
    assert by_ids.usage.prompt_tokens == 3
    echoed = typed(client.completions.create(model=MODEL, prompt="a b", max_tokens=1, echo=True))
    assert echoed.choices[0].text.startswith("a b")
    streamed = client.completions.create(model=MODEL, prompt="a", max_tokens=4, stream=True)
    assert "".join(typed(chunk).choices[0].text for chunk in streamed) == answer.choices[0].text


def raises(kind, call, **said):
    try:
        call()
    except kind as raised:
        error = raised
    else:
        raise AssertionError(f"no {kind.__name__}")
    for name, value in said.items():
        assert getattr(error, name) == value, (name, getattr(error, name))


def test_errors_are_the_clients_classes():
    def chat(**fields):
        asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2} | fields
        return lambda: client.chat.completions.create(**asked)

    raises(openai.BadRequestError, chat(logit_bias={"5": 1}), param="logit_bias")
    raises(openai.BadRequestError, chat(max_tokens=9999), code="context_length_exceeded")
    raises(openai.BadRequestError, chat(extra_body={"args": {"q": 1}}), param="args")
    raises(openai.NotFoundError, chat(model="gpt-9"), code="model_not_found")
    stranger = client.with_options(api_key="wrong")
    raises(openai.AuthenticationError, stranger.models.list, code="invalid_api_key")
    impatient = client.with_options(timeout=0.01)
    raises(openai.APITimeoutError, lambda: impatient.completions.create(max_tokens=400, **LONG))


def test_overload_is_retried():
    narrow = OpenAI(base_url=NARROW, api_key=KEY, max_retries=0)
    patient = narrow.with_options(max_retries=30)
    under_way = threading.Event()

    def hold():
        stream = narrow.completions.create(stream=True, max_tokens=200, **LONG)
        for _ in stream:
            under_way.set()

    thread = threading.Thread(target=hold)
    thread.start()
    assert under_way.wait(60)
    raises(
        openai.RateLimitError,
        lambda: narrow.completions.create(model=MODEL, prompt="a", max_tokens=1),
        code="overloaded",
    )
    answer = patient.completions.create(model=MODEL, prompt="a", max_tokens=1)
    thread.join()
    assert answer.choices[0].text is not None


def test_async():
    async def work():
        async with AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as client:
            asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8}
            answers = await asyncio.gather(
                *(client.chat.completions.create(**asked) for _ in range(8))
            )
            assert len({typed(answer).choices[0].message.content for answer in answers}) == 1
            stream = await client.chat.completions.create(stream=True, **asked)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == answers[0].choices[0].message.content
            left = await client.chat.completions.create(stream=True, **asked)
            async for _ in left:
                break
            await left.close()
            assert [model.id async for model in client.models.list()] == [MODEL]

    asyncio.run(work())


def main():
    print("openai", openai.__version__)
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            began = time.monotonic()
            test()
            print(f"{name}: passed, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
