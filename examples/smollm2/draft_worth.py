"""What drafts are worth: acceptance, tokens per pass, and time against no drafting.

    python examples/smollm2/draft_worth.py [--drafter FOLDER]     # SmolLM2 and its reward model
    python examples/smollm2/draft_worth.py --tokens 8 --rounds 1  # a rehearsal

Four uses: a sweep over w and k, where each cell may draft from those before it; prompts that ask
for a copy; chat; and samples. Every drafter, "auto" and no drafts take turns; a use's time is the
median of the rounds. The tokens of every method are compared with those of no drafts.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from args_fast import ArgsDecoder, DecodingConfig, Generation, smollm2
from args_fast.kvcache.storage import PagedCache, pages_for
from args_fast.models.branches import Branches
from args_fast.rewards import Classifier

WEIGHTS, KS = (0.5, 1.0, 1.5, 2.0, 3.0), (5, 10)
TEXT = "The ferry to the island leaves at seven in the morning and returns at nine in the evening."
COPIES = ("Repeat this word for word", "Correct the spelling of this text, if anything is wrong")
ASKED = ("How do I teach my dog to sit?", "What should I cook tonight?", "Why is the sky blue?")
CHAT = [[{"role": "user", "content": text}] for text in ASKED]
COPY = [[{"role": "user", "content": f"{copy}: {TEXT}"}] for copy in COPIES]
Cells = list[tuple[Any, DecodingConfig]]


def uses(n: int) -> dict[str, Cells]:
    """Prompts with their options, decoded one after the other, of n tokens each."""
    plain = DecodingConfig(max_new_tokens=n)
    grid = [replace(plain, w=w, k=k) for k in KS for w in WEIGHTS]
    return {
        "sweep": [(prompt, cell) for cell in grid for prompt in CHAT],
        "copy": [(prompt, plain) for prompt in COPY],
        "chat": [(prompt, plain) for prompt in CHAT],
        "samples": [(p, replace(plain, temperature=0.7, seed=s)) for s in range(3) for p in CHAT],
    }


@torch.inference_mode()
def row_cost(pair: ArgsDecoder, rows: int = 10, prefix: int = 128, rounds: int = 20) -> float:
    """What a further row of a language model's pass costs, where the first costs 1."""
    lm, pages = pair.engine.lm, list(range(1, 1 + pages_for(prefix)))
    cache = PagedCache(lm.layout, len(pages))
    lm.prefill(cache, list(range(5, 5 + prefix)), pages)
    table, lengths = torch.tensor([pages]).int(), torch.tensor([prefix]).int()
    times: dict[int, list[float]] = {1: [], rows: []}
    for _ in range(rounds):
        for count, measured in times.items():
            shape = lm.layout.layers, 1, count, lm.layout.kv_heads, lm.layout.head_size
            k, v = (torch.zeros(shape, dtype=lm.layout.dtype) for _ in range(2))
            tail = Branches(cache, table, lengths, k, v)
            began = time.perf_counter()
            lm.hidden(torch.arange(5, 5 + count)[None], tail.positions(), tail)
            measured.append(time.perf_counter() - began)
    single, several = map(statistics.median, times.values())
    return round((several / single - 1) / (rows - 1), 3)


def measure(make: Any, drafts: dict[str, Any], cells: Cells, rounds: int) -> dict[str, dict]:
    """One row for each drafter: over all cells, in the order of ``drafts``, "none" first."""
    seconds: dict[str, list[float]] = {name: [] for name in drafts}
    results: dict[str, list[Generation]] = {}
    for _ in range(rounds):
        for name, draft in drafts.items():
            pair = make(draft)  # of its own: without the memory of other rounds
            began = time.perf_counter()
            results[name] = [pair.generate(prompt, config)[0] for prompt, config in cells]
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    rows = {}
    for name, generations in results.items():
        tokens = [g.token_ids for g in generations]
        new, accepted = sum(map(len, tokens)), sum(g.accepted or 0 for g in generations)
        rows[name] = {
            "drafted": sum(g.drafted or 0 for g in generations),
            "accepted": accepted,
            "tokens_per_pass": round(new / (new - accepted), 3),
            "ms_per_token": round(1000 * median[name] / new, 2),
            "time": round(median[name] / median["none"], 3),
            "same_tokens": tokens == [g.token_ids for g in results["none"]],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--lm", "--rm", "--drafter", "--out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.set_verbosity_error()
    lm, rm = args.lm or smollm2.lm(), args.rm or smollm2.rm()
    tokenizer = AutoTokenizer.from_pretrained(lm)
    model = AutoModelForCausalLM.from_pretrained(lm)
    reward = Classifier(AutoModelForSequenceClassification.from_pretrained(rm))
    make = lambda draft: ArgsDecoder(model, reward, tokenizer=tokenizer, draft=draft)  # noqa: E731
    drafts: dict[str, Any] = {"none": None, "ngram": "ngram", "history": "history", "auto": "auto"}
    if args.drafter is not None:
        drafts["small LM"] = AutoModelForCausalLM.from_pretrained(args.drafter)
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "row_cost": row_cost(make(None))}
    for name, cells in uses(args.tokens).items():
        report[name] = measure(make, drafts, cells, args.rounds)
        print(json.dumps({name: report[name]}, indent=1), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
