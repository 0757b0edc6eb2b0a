"""A peer without an engine, for the tests of the comparison: it counts up from the prompt's end."""

import time


def load(model, dtype, threads, room):
    print("what a peer prints must not reach the pipe")
    if model == "absent":
        raise FileNotFoundError("there is no such model")

    def count(prompts, new_tokens):
        if len(prompts[0]) + new_tokens > room:
            raise ValueError(f"room for {room} tokens")
        time.sleep(0.01 * new_tokens)
        return [[prompt[-1] + 1 + i for i in range(new_tokens)] for prompt in prompts]

    def backwards(prompts, new_tokens):
        time.sleep(0.01 * new_tokens)
        return [[prompt[-1] + 1, *range(new_tokens - 1)] for prompt in prompts]

    return {"transformers greedy": count, f"{model} greedy": count, "other greedy": backwards}
