"""A value head on a frozen language model, for ``args_fast.rewards.Head``.

    python examples/value_head/train.py                          (the tiny pair's data, a minute)
    python examples/value_head/train.py --lm FOLDER --data FILE.jsonl --out head.safetensors

Lines of FILE are {"prompt", "chosen", "rejected"} (pairwise loss) or {"prompt", "response",
"rating"} (regression). The language model reads every text once; what is trained is one linear
layer on its hidden states, after every few tokens of an answer and at its end: decoding asks for
the rewards of answers that are not finished.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from args_fast import tiny_pair
from args_fast.models.loading import load_lm, load_tokenizer

EVERY = 4  # tokens between two prefixes of an answer that are read
HELD_OUT = 0.2  # of the prompts
DECAYS = (1e-4, 1e-3, 1e-2)  # the best on a part of the training prompts is taken


@dataclass
class Rows:
    """Hidden states x [n, H] (of pairs: chosen minus rejected), their targets [n] (1 for pairs),
    weights [n] that add up to 1 for each answer, and whether a row is a whole answer [n]."""

    prompt: str
    x: Tensor
    target: Tensor
    weight: Tensor
    whole: Tensor


def read(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    wanted = [{"prompt", "chosen", "rejected"}, {"prompt", "response", "rating"}]
    if not lines or not any(all(keys <= line.keys() for line in lines) for keys in wanted):
        raise SystemExit(f"{file} has lines without {' or '.join(map(str, map(sorted, wanted)))}")
    return lines


@torch.inference_mode()
def states(model: Any, tokenizer: Any, prompt: str, answer: str) -> Tensor:
    """[tokens of the answer, H] f32."""
    start = len(tokenizer(prompt).input_ids)
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    hidden: Tensor = model.base_model(ids, use_cache=False).last_hidden_state[0, start:]
    return hidden.float()


def rows_of(model: Any, tokenizer: Any, line: dict[str, Any]) -> Rows | None:
    """Those of one line; None where an answer has no tokens."""
    names = ("chosen", "rejected") if "chosen" in line else ("response",)
    answers = [states(model, tokenizer, line["prompt"], line[name]) for name in names]
    shortest = min(map(len, answers))
    if shortest == 0:
        return None
    prefixes, end, target = answers[0][:shortest], answers[0][-1], float(line.get("rating", 1))
    if len(answers) == 2:
        prefixes, end = prefixes - answers[1][:shortest], end - answers[1][-1]
    x = torch.cat([end[None], prefixes[EVERY - 1 : -1 : EVERY]])
    weight = torch.full((len(x),), 0.5 / max(1, len(x) - 1))
    weight[0] = 0.5 if len(x) > 1 else 1.0
    return Rows(line["prompt"], x, torch.full((len(x),), target), weight, torch.arange(len(x)) == 0)


def together(parts: list[Rows]) -> Rows:
    tensors = ("x", "target", "weight", "whole")
    return Rows("", *(torch.cat([getattr(part, name) for part in parts]) for name in tensors))


def fit(rows: Rows, decay: float, pairwise: bool) -> tuple[Tensor, Tensor]:
    """Weight [H] and bias [] of the head with the least loss; both losses are convex."""
    scale = rows.x.std(0).clamp(min=1e-6)
    center = torch.zeros_like(scale) if pairwise else rows.x.mean(0)
    middle = rows.target.mean()
    x = (rows.x - center) / scale
    w = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        out = x @ w
        each = -logsigmoid(out) if pairwise else (out - (rows.target - middle)).square()
        total = (rows.weight * each).sum() / rows.weight.sum() + decay * w.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    weight = (w / scale).detach()
    return weight, -weight @ center + (0.0 if pairwise else middle)


def figure(rows: Rows, head: tuple[Tensor, Tensor], pairwise: bool) -> tuple[float, float]:
    """Of whole answers and of prefixes: the share of pairs in the right order, or the correlation
    with the ratings."""
    out, found = rows.x @ head[0] + head[1], []
    for kind in (rows.whole, ~rows.whole):
        o, t = out[kind], rows.target[kind]
        both = torch.stack([o, t])
        found.append((o > 0).float().mean() if pairwise else torch.corrcoef(both)[0, 1])
    return found[0].item(), found[1].item()


def split(rows: list[Rows], share: float, seed: int) -> tuple[list[Rows], list[Rows]]:
    """Rows of a share of the prompts apart, so that no prompt is in both parts."""
    prompts = sorted({one.prompt for one in rows})
    random.Random(seed).shuffle(prompts)
    apart = set(prompts[: max(1, round(share * len(prompts)))])
    return [r for r in rows if r.prompt not in apart], [r for r in rows if r.prompt in apart]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default=str(tiny_pair.LM))
    parser.add_argument("--data", type=Path, default=Path(tiny_pair.HELDOUT))
    parser.add_argument("--out", type=Path, default=Path("build/value_head/head.safetensors"))
    parser.add_argument("--seeds", type=int, default=3, help="splits of the prompts")
    asked = parser.parse_args()
    lines = read(asked.data)
    pairwise = "chosen" in lines[0]
    model = load_lm(asked.lm, torch.device("cpu"), torch.float32).eval()
    tokenizer = load_tokenizer(asked.lm)
    rows = [one for line in lines if (one := rows_of(model, tokenizer, line)) is not None]
    figures, heads = [], []
    for seed in range(asked.seeds):
        train, held_out = split(rows, HELD_OUT, seed)
        fold, apart = map(together, split(train, HELD_OUT, seed))
        by_decay = {d: figure(apart, fit(fold, d, pairwise), pairwise)[0] for d in DECAYS}
        best = max(DECAYS, key=by_decay.__getitem__)
        heads.append(fit(together(train), best, pairwise))
        figures.append(figure(together(held_out), heads[-1], pairwise))
    name = "pairs in the right order" if pairwise else "correlation with ratings"
    for kind, values in zip(("whole answers", "prefixes"), zip(*figures, strict=True), strict=True):
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        print(f"held-out {kind}: {mean(values):.3f}{spread} {name}, {len(values)} splits")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    weight, bias = heads[0]
    save_file({"weight": weight[None].contiguous(), "bias": bias.reshape(1)}, asked.out)
    print(f"{asked.out}: the head of the first split, for args_fast.rewards.Head")


if __name__ == "__main__":
    main()
