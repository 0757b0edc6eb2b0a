"""The language model's own answers, which the reward model has to tell apart while it guides."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from conversations import SEED

SAMPLES = 4  # of each prompt
NEW_TOKENS = 40
BATCH = 16  # prompts
TOP_P = 0.95


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """One turn of a chat, as the decoder encodes it."""
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def write(lm: Any, tokenizer: Any, prompts: list[str], out: Path) -> list[dict]:
    """SAMPLES answers to each prompt, a line for a prompt. Resumes after the last whole batch:
    every batch has a seed of its own, so what is there is what would be drawn again."""
    out.parent.mkdir(parents=True, exist_ok=True)
    records = read(out)
    if len(records) < len(prompts):
        records = records[: len(records) // BATCH * BATCH]
        out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    with out.open("a", encoding="utf-8") as lines:
        for start in range(len(records), len(prompts), BATCH):
            began = time.perf_counter()
            torch.manual_seed(SEED + start)
            batch = prompts[start : start + BATCH]
            for prompt, answers in zip(batch, answer(lm, tokenizer, batch), strict=True):
                records.append({"prompt": prompt, "answers": answers})
            lines.writelines(json.dumps(record) + "\n" for record in records[start:])
            lines.flush()
            seconds = time.perf_counter() - began
            print(f"{out.name}: {len(records)} of {len(prompts)}, {seconds:.0f} s", flush=True)
    return records


def read(path: Path) -> list[dict]:
    """The whole lines of a file, none where there is no file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@torch.inference_mode()
def answer(lm: Any, tokenizer: Any, prompts: list[str]) -> list[list[tuple[str, bool]]]:
    """SAMPLES texts for each prompt, each with whether it ended by itself."""
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    ids = [[tokenizer.pad_token_id] * n + row for n, row in zip(padding, rows, strict=True)]
    mask = [[0] * n + [1] * len(row) for n, row in zip(padding, rows, strict=True)]
    out = lm.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=TOP_P,
        max_new_tokens=NEW_TOKENS,
        num_return_sequences=SAMPLES,
    )[:, longest:]
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    ended = (out == tokenizer.eos_token_id).any(-1).tolist()
    pairs = list(zip((text.strip() for text in texts), ended, strict=True))
    return [pairs[i : i + SAMPLES] for i in range(0, len(pairs), SAMPLES)]
