"""Train the pair inside the package: tokenizer, language model, reward model. No download.

    python examples/tiny_pair/train.py [--out DIR]

The paper's recipe (section 3.1) in small: fine-tuning on answers, then the reward model from those
weights with the pairwise loss -log sigmoid(r(x, y_w) - r(x, y_l)). Three things differ, on purpose:

- The language model also sees dispreferred answers (DISPREFERRED of them), so that it is fluent but
  imperfect, and guidance has something to do.
- The reward loss is taken at every token of the answers and not only at the end: decoding asks
  for the reward of unfinished texts, which a model trained on whole ones alone has never seen.
- Its labels are smoothed (DOUBT). The answers are so easy to tell apart that rewards would grow
  without bound, and any w would outweigh the language model.

Deterministic for a given torch version and number of threads. The held-out figures are computed on
the saved bfloat16 weights and written beside them.
"""

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from corpus import Dialogue, dialogues, prompt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

SEED = 20240117
VOCABULARY = 1536
LM_DIALOGUES, RM_PAIRS, HELDOUT = 14_000, 6_000, 200
DISPREFERRED = 0.6
DOUBT = 0.1
LM_BATCH, RM_BATCH = 32, 16
LM_RATE, RM_RATE = 3e-3, 5e-4
PACKAGE = Path(__file__).parents[2] / "args_fast" / "tiny_pair"

# The line breaks stand in expressions: transformers drops the one that follows a block.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\n\\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


def main(out: Path) -> None:
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    began = time.perf_counter()
    train = list(dialogues(LM_DIALOGUES, heldout=False, seed=SEED))
    heldout = list(dialogues(HELDOUT, heldout=True, seed=SEED))

    tokenizer = train_tokenizer(train)
    lm = train_lm(tokenizer, train)
    save(lm, tokenizer, out / "lm")
    rm = train_rm(lm, tokenizer, train[:RM_PAIRS])
    save(rm, tokenizer, out / "rm")
    seconds = time.perf_counter() - began

    with (out / "heldout.jsonl").open("w") as lines:
        for d in heldout:
            record = {"prompt": prompt(d.question), "chosen": d.chosen, "rejected": d.rejected}
            lines.write(json.dumps(record) + "\n")
    figures = evaluate(out, tokenizer, heldout) | {
        "training_seconds": round(seconds),
        "device": f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "seed": SEED,
        "lm_dialogues": LM_DIALOGUES,
        "dispreferred_fraction": DISPREFERRED,
        "rm_pairs": RM_PAIRS,
        "label_smoothing": DOUBT,
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def train_tokenizer(train: list[Dialogue]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = (f"{prompt(d.question)} {d.chosen} {d.rejected}" for d in train)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )


def encode(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> tuple[int, list[int]]:
    """The number of prompt tokens, and the ids of prompt, answer and end."""
    x = tokenizer(prompt(question)).input_ids
    return len(x), [*x, *tokenizer(" " + answer).input_ids, tokenizer.eos_token_id]


def padded(rows: list[list[int]], pad: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def train_lm(tokenizer: PreTrainedTokenizerFast, train: list[Dialogue]) -> LlamaForCausalLM:
    draw = random.Random(SEED)
    examples = []
    for d in train:
        answer = d.rejected if draw.random() < DISPREFERRED else d.chosen
        examples.append(encode(tokenizer, d.question, answer))
    lm = LlamaForCausalLM(config(tokenizer))
    for batch in batches(lm, examples, LM_BATCH, LM_RATE, "language model"):
        ids = padded([row for _, row in batch], tokenizer.pad_token_id)
        starts = [start for start, _ in batch]
        answer_loss(lm, ids, starts, tokenizer.pad_token_id).backward()
    return lm.eval()


def answer_loss(lm: LlamaForCausalLM, ids: Tensor, starts: list[int], pad: int) -> Tensor:
    """Cross-entropy per answer token, the end included."""
    targets = ids[:, 1:].clone()
    for row, start in enumerate(starts):
        targets[row, : start - 1] = pad
    logits = lm(input_ids=ids[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad)


def train_rm(
    lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, train: list[Dialogue]
) -> LlamaForSequenceClassification:
    torch.manual_seed(SEED + 1)
    rm = LlamaForSequenceClassification(config(tokenizer))
    rm.model.load_state_dict(lm.model.state_dict())
    pairs = [
        (encode(tokenizer, d.question, d.chosen), encode(tokenizer, d.question, d.rejected))
        for d in train
    ]
    for batch in batches(rm, pairs, RM_BATCH, RM_RATE, "reward model"):
        rows = [good for good, _ in batch] + [bad for _, bad in batch]
        r = token_rewards(rm, padded([row for _, row in rows], tokenizer.pad_token_id))
        pair_loss(r, rows).backward()
    return rm.eval()


def token_rewards(rm: LlamaForSequenceClassification, ids: Tensor) -> Tensor:
    """r of every prefix of every row, [rows, tokens]: the model is causal, so the head's value at a
    token is the reward of the text that ends there."""
    return rm.score(rm.model(input_ids=ids).last_hidden_state)[..., 0]


def pair_loss(r: Tensor, rows: list[tuple[int, list[int]]]) -> Tensor:
    """The pairwise loss at the ends, and averaged over equal numbers of answer tokens."""
    half, losses = len(rows) // 2, []
    for good in range(half):
        (start, y_w), (_, y_l) = rows[good], rows[half + good]
        r_w, r_l = r[good], r[half + good]
        shared = min(len(y_w), len(y_l)) - 1
        losses.append(preference_loss(r_w[len(y_w) - 1] - r_l[len(y_l) - 1]))
        losses.append(preference_loss(r_w[start:shared] - r_l[start:shared]).mean())
    return torch.stack(losses).mean()


def preference_loss(lead: Tensor) -> Tensor:
    """-log sigmoid(r_w - r_l), were the preferred answer the worse one with probability DOUBT."""
    return -(1 - DOUBT) * logsigmoid(lead) - DOUBT * logsigmoid(-lead)


def batches(model: torch.nn.Module, examples: list, size: int, rate: float, name: str) -> Iterator:
    """Shuffled batches of one epoch, with the optimiser's step after each."""
    examples = random.Random(SEED + 2).sample(examples, len(examples))
    steps = len(examples) // size
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=rate, total_steps=steps, pct_start=0.1
    )
    model.train()
    began = time.perf_counter()
    for i in range(steps):
        yield examples[i * size : (i + 1) * size]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if (i + 1) % 50 == 0 or i + 1 == steps:
            print(f"{name}: step {i + 1}/{steps}, {time.perf_counter() - began:.0f} s", flush=True)


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.no_grad()
def evaluate(out: Path, tokenizer: PreTrainedTokenizerFast, heldout: list[Dialogue]) -> dict:
    """Perplexity on preferred answers, and how often the preferred answer has the higher reward, at
    the end and at the 8th and 16th token of the answers."""
    lm = LlamaForCausalLM.from_pretrained(out / "lm", dtype=torch.float32).eval()
    rm = LlamaForSequenceClassification.from_pretrained(out / "rm", dtype=torch.float32).eval()
    loss = tokens = 0.0
    correct = {"end": 0, "8_tokens": 0, "16_tokens": 0}
    counted = dict.fromkeys(correct, 0)
    for d in heldout:
        start, good = encode(tokenizer, d.question, d.chosen)
        _, bad = encode(tokenizer, d.question, d.rejected)
        answer = len(good) - start
        loss += answer_loss(lm, torch.tensor([good]), [start], tokenizer.pad_token_id) * answer
        tokens += answer
        r_w = token_rewards(rm, torch.tensor([good]))[0]
        r_l = token_rewards(rm, torch.tensor([bad]))[0]
        for key, at in (("end", None), ("8_tokens", 8), ("16_tokens", 16)):
            if at is not None and start + at > min(len(good), len(bad)):
                continue
            good_end, bad_end = (-1, -1) if at is None else (start + at - 1, start + at - 1)
            correct[key] += int(r_w[good_end] > r_l[bad_end])
            counted[key] += 1
    return {
        "heldout_dialogues": len(heldout),
        "lm_perplexity_preferred": round(math.exp(loss / tokens), 3),
        "rm_accuracy": {key: round(correct[key] / counted[key], 4) for key in correct},
        "lm_parameters": lm.num_parameters(),
        "rm_parameters": rm.num_parameters(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=PACKAGE, help="where the pair is written")
    main(parser.parse_args().out)
