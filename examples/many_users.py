"""Many users, one decoder: python examples/many_users.py

Each request has options of its own and joins the batch when it comes. A user who leaves frees their
part of the cache at once.
"""

import argparse
import asyncio

from args_fast import ArgsDecoder, AsyncArgsDecoder, DecodingConfig
from args_fast.tiny_pair import LM, RM

QUESTIONS = [
    "How do I teach my spaniel to sit?",
    "Suggest a short walk.",
    "What should I cook tonight?",
]


async def ask(serving: AsyncArgsDecoder, number: int, question: str) -> None:
    config = DecodingConfig(w=0.5 * number, seed=number, temperature=0.7, max_new_tokens=24)
    await asyncio.sleep(0.05 * number)
    text = ""
    async for token in serving.stream([{"role": "user", "content": question}], config):
        text += token.text or ""
        if number == 2 and len(text) > 40:
            break  # this user has read enough
    print(f"{question}\n  {text}")


async def main() -> None:
    async with AsyncArgsDecoder(ArgsDecoder.from_pretrained(LM, RM)) as serving:
        await asyncio.gather(*(ask(serving, i, q) for i, q in enumerate(QUESTIONS)))


argparse.ArgumentParser(description=__doc__).parse_args()
asyncio.run(main())
