"""A small language model that drafts for SmolLM2-135M-Instruct: some of its layers, distilled.

    python examples/smollm2/drafter.py [--out DIR] [--layers N] [--minutes M]

The student has the teacher's embeddings and N of its 30 layers, evenly spaced. It learns the
teacher's distribution (KL divergence at every token) over answers that the teacher draws to
messages of the "train" conversations, until the minutes are over. What it is like on messages of
the "heldout" conversations is written next to it: the share of tokens at which its likeliest token
is the teacher's. Then ``ArgsDecoder.from_pretrained(lm, rm, draft=DIR)``.
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conversations
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from args_fast import smollm2

BATCH, NEW_TOKENS, STEPS_PER_BATCH, HELDOUT = 16, 48, 2, 32
RATE, CLIP = 5e-4, 1.0


def student_of(teacher: Any, layers: int) -> Any:
    """A model of the same class with evenly spaced layers of the teacher."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    student = AutoModelForCausalLM.from_config(config)
    last = teacher.config.num_hidden_layers - 1
    for i, layer in enumerate(student.model.layers):
        taken = round(i * last / max(1, layers - 1))
        layer.load_state_dict(teacher.model.layers[taken].state_dict())
    student.model.embed_tokens.load_state_dict(teacher.model.embed_tokens.state_dict())
    student.model.norm.load_state_dict(teacher.model.norm.state_dict())
    student.generation_config = teacher.generation_config
    return student.train()


def messages(split: str) -> list[str]:
    talks = conversations.load()[split]
    return [turn for talk in talks for turn in talk.turns[:2] if turn]


def answers(teacher: Any, tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [B, T] of messages with drawn answers, and the mask of the answers' tokens."""
    talks = [[{"role": "user", "content": text}] for text in texts]
    rendered = tokenizer.apply_chat_template(talks, add_generation_prompt=True, tokenize=False)
    tokenizer.padding_side = "left"
    batch = tokenizer(rendered, return_tensors="pt", padding=True, truncation=True, max_length=96)
    ids = teacher.generate(**batch, do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS)
    mask = torch.ones_like(ids)
    mask[:, : batch.input_ids.shape[1]] = batch.attention_mask
    return ids, mask


def batches(teacher: Any, tokenizer: Any, split: str, seed: int) -> Iterator[tuple]:
    """Answers with the teacher's log-probabilities at each of their tokens."""
    texts, chance = messages(split), random.Random(seed)
    while True:
        with torch.inference_mode():
            ids, mask = answers(teacher, tokenizer, chance.sample(texts, BATCH))
            start = ids.shape[1] - NEW_TOKENS - 1
            logits = teacher(input_ids=ids, attention_mask=mask).logits[:, start:-1]
        yield ids.clone(), mask.clone(), logits.log_softmax(-1).clone(), start


def predicted(student: Any, ids: torch.Tensor, mask: torch.Tensor, start: int) -> torch.Tensor:
    return student(input_ids=ids, attention_mask=mask).logits[:, start:-1].log_softmax(-1)


def distil(teacher: Any, tokenizer: Any, student: Any, minutes: float) -> int:
    """Train the student in place until the minutes are over. Returns the number of steps."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    began, steps = time.monotonic(), 0
    for ids, mask, target, start in batches(teacher, tokenizer, "train", seed=0):
        for _ in range(STEPS_PER_BATCH):
            ours = predicted(student, ids, mask, start)
            loss = kl_div(ours, target, log_target=True, reduction="none").sum(-1).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        share = (time.monotonic() - began) / (60 * minutes)
        print(f"step {steps}: KL {loss.item():.3f}, {share:.0%} of the time", flush=True)
        if share >= 1:
            return steps
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - share)
    raise AssertionError  # batches never end


@torch.inference_mode()
def agreement(teacher: Any, tokenizer: Any, student: Any) -> float:
    same, count = 0, 0
    for ids, mask, target, start in batches(teacher, tokenizer, "heldout", seed=1):
        ours = predicted(student, ids, mask, start)
        same += int((ours.argmax(-1) == target.argmax(-1)).sum())
        count += ours.shape[0] * ours.shape[1]
        if count >= HELDOUT * NEW_TOKENS:
            return same / count
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lm", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/smollm2/drafter"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    lm = args.lm or smollm2.lm()
    tokenizer = AutoTokenizer.from_pretrained(lm)
    teacher = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float32).eval()
    student = student_of(teacher, args.layers)
    steps = distil(teacher, tokenizer, student, args.minutes)
    student.eval()
    figures = {"layers": args.layers, "minutes": args.minutes, "steps": steps}
    figures["agreement"] = round(agreement(teacher, tokenizer, student), 4)
    student.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "drafter.json").write_text(json.dumps(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
