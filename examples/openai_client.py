"""The server with OpenAI's client: args-fast serve & python examples/openai_client.py

Any client of OpenAI works as it is; options of guided decoding travel in the field args.
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
for w in (0, 1.5):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "How can I clean the sofa with baking soda?"}],
        max_tokens=48,
        extra_body={"args": {"k": 10, "w": w}},
    )
    print(f"w = {w}: {answer.choices[0].message.content}")
