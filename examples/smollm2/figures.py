"""How often a reward prefers the preferred answer: at its end, and after its first few tokens."""

import math
from collections.abc import Callable, Iterator

import torch
from datasets import Dataset
from every_token import margins
from torch import Tensor

PREFIXES = (4, 8, 16, 32)  # tokens of the answers
BATCH = 16  # pairs

Rewards = Callable[[Tensor, Tensor], Tensor]
"""From ids and mask [rows, T], padded on the right, to the reward of every prefix [rows, T]."""


def batches(data: Dataset) -> Iterator[tuple[dict, Tensor, Tensor]]:
    """Columns, ids and mask of some pairs at a time: the chosen rows first, padded on the right."""
    for start in range(0, len(data), BATCH):
        columns = data[start : start + BATCH]
        rows = columns["chosen_ids"] + columns["rejected_ids"]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        yield columns, ids, mask


@torch.inference_mode()
def accuracy(data: Dataset, rewards: Rewards) -> dict[str, dict]:
    """Accuracy with its interval and the mean probability claimed for the answer preferred, of
    whole answers ("end") and after 4, 8, 16 and 32 tokens of both, where they are so long and
    differ by then."""
    leads: dict[str, list[float]] = {"end": [], **{str(n): [] for n in PREFIXES}}
    for columns, ids, mask in batches(data):
        lead, both, end = margins(rewards(ids, mask), ids, mask)
        leads["end"] += end.tolist()
        for row, prompt in enumerate(columns["prompt_tokens"]):
            for n in PREFIXES:
                at = prompt + n - 1
                if at < both.shape[1] and both[row, at]:
                    leads[str(n)].append(lead[row, at].item())
    return {name: summary(torch.tensor(values)) for name, values in leads.items() if values}


def summary(leads: Tensor) -> dict:
    """pairs, accuracy, its 95% interval (Wilson), and the mean of sigmoid(|lead|), which equals the
    accuracy where rewards are calibrated."""
    n, accuracy = len(leads), (leads > 0).double().mean().item()
    z = 1.96
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2)
    return {
        "pairs": n,
        "accuracy": round(accuracy, 4),
        "interval": [round(max(centre - spread, 0), 4), round(centre + spread, 4)],
        "claimed": round(leads.abs().sigmoid().mean().item(), 4),
    }


def markdown(record: dict) -> str:
    """The accuracies as tables, and what they took."""
    processor, wall = (
        sum(step[kind] for step in record["seconds"].values()) / 60
        for kind in ("processor", "wall")
    )
    lines = [
        "# Held-out figures of the real pair",
        "",
        "Made by `python examples/smollm2/train.py`: do not edit.",
        f"{processor:.0f} processor minutes, {wall:.0f} by the clock; {record['device']}.",
        "",
        "Each cell: how often the preferred answer has the higher reward, with a 95% interval",
        "(Wilson), how sure the reward claims to be (the mean of sigmoid(|lead|), which equals the",
        "accuracy where rewards are calibrated), and the number of pairs.",
    ]
    columns = [*map(str, PREFIXES), "end"]
    for judge, kinds in record["accuracy"].items():
        lines += ["", f"## {judge.replace('_', ' ')}", ""]
        lines += ["| pairs | " + " | ".join(_heading(name) for name in columns) + " |"]
        lines += ["| --- |" + " --- |" * len(columns)]
        for kind, found in kinds.items():
            cells = (_cell(found[name]) if name in found else "" for name in columns)
            lines += [f"| {kind} | " + " | ".join(cells) + " |"]
    return "\n".join(lines) + "\n"


def _heading(name: str) -> str:
    return "whole answers" if name == "end" else f"after {name} tokens"


def _cell(figure: dict) -> str:
    low, high = figure["interval"]
    return (
        f"**{figure['accuracy']:.2f}** ({low:.2f} to {high:.2f}), claims {figure['claimed']:.2f}, "
        f"n = {figure['pairs']}"
    )
