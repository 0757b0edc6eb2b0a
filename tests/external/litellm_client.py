"""litellm as a client: chat and text completions, streams, and its classes of errors."""

import asyncio
import os
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its price list is not looked up

import litellm

litellm.telemetry = False
MODEL = "args-fast-tiny"
SERVER = {"api_base": os.environ["ARGS_URL"] + "/v1", "api_key": os.environ["ARGS_KEY"]}
CHAT = {
    "model": f"openai/{MODEL}",
    "messages": [{"role": "user", "content": "How do I grow basil?"}],
    "max_tokens": 8,
    "num_retries": 0,
    **SERVER,
}


def raises(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def main():
    print("litellm", version("litellm"))
    answer = litellm.completion(**CHAT, extra_body={"args": {"k": 5, "w": 2.0}})
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8
    print("completion: passed")

    whole = litellm.completion(**CHAT).choices[0].message.content
    chunks = litellm.completion(stream=True, **CHAT)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole, (text, whole)
    print("stream: passed")

    asynchronous = asyncio.run(litellm.acompletion(**CHAT))
    assert asynchronous.choices[0].message.content == whole
    print("acompletion: passed")

    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="Hello", max_tokens=4, **SERVER
    )
    assert text.choices[0].text
    print("text_completion: passed")

    raises(litellm.BadRequestError, lambda: litellm.completion(**CHAT, logit_bias={"5": 1}))
    raises(litellm.AuthenticationError, lambda: litellm.completion(**CHAT | {"api_key": "no"}))
    raises(litellm.NotFoundError, lambda: litellm.completion(**CHAT | {"model": "openai/no"}))
    raises(
        litellm.ContextWindowExceededError,
        lambda: litellm.completion(**CHAT | {"max_tokens": 9999}),
    )
    print("errors: passed")


if __name__ == "__main__":
    main()
