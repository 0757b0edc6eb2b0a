"""OpenAI's client against ``args-fast serve``: an answer, a stream, rewards and candidates.

args-fast serve &
pip install openai && python examples/serve/client.py
"""

import argparse
import os

from openai import OpenAI

argparse.ArgumentParser(description=__doc__).parse_args()
client = OpenAI(
    base_url=os.environ.get("ARGS_FAST_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ARGS_FAST_API_KEY", "none"),
)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "How do I keep basil alive indoors?"}]


def ask(w: float) -> str:
    """One answer, guided with the weight w; 0 is greedy decoding."""
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=48, extra_body={"args": {"k": 10, "w": w}}
    )
    return answer.choices[0].message.content


print("greedy:", ask(0))
print("ARGS:  ", ask(1.5))

print("\nA stream, with the reward of the text so far after each token:")
stream = client.chat.completions.create(
    model=model, messages=messages, max_tokens=12, stream=True, extra_body={"args": {"w": 1.5}}
)
for chunk in stream:
    choice = chunk.choices[0]
    if choice.delta.content:
        print(f"{choice.delta.content!r:14} {choice.args['rewards'][0]:+.2f}")

print("\nWhat the first token was chosen from:")
answer = client.chat.completions.create(
    model=model,
    messages=messages,
    max_tokens=1,
    extra_body={"args": {"k": 5, "w": 1.5, "return_candidates": True}},
)
for each in answer.choices[0].args["candidates"][0]:
    numbers = " ".join(f"{name} {each[name]:+.2f}" for name in ("logprob", "reward", "score"))
    print(f"{each['token']!r:14} {numbers}")
