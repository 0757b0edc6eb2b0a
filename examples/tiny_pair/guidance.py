"""What guidance does to the embedded pair's answers: the table in guidance.md, from w = 0 up.

    python examples/tiny_pair/guidance.py [--prompts 150] [--out DIR]

Greedy decoding (w = 0) and ARGS-greedy over the held-out prompts, and the same for the sampled
kind. The paper's Figure 2 in small: the reward rises with w to a point, and the text falls apart
beyond it. The judge is the reward model that guides, as in the paper.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track

import args_fast
from args_fast import ArgsDecoder, DecodingConfig
from args_fast.eval.diversity import diversity
from args_fast.tiny_pair import HELDOUT, LM, RM

WEIGHTS = (0, 0.25, 0.5, 1, 1.5, 2, 4, 8, 16, 32, 64)
K, NEW_TOKENS = 10, 96
SHOWN = (0, 0.5, 1.5, 64)


@dataclass(frozen=True)
class Row:
    """Means over the prompts: reward of the whole text; diversity of the answer; perplexity of the
    answer under the language model; share of answers that came to an end."""

    w: float
    reward: float
    diversity: float
    perplexity: float
    ended: float


def measure(decoder: ArgsDecoder, prompts: list[str], w: float) -> tuple[Row, list[str]]:
    results = decoder.generate(prompts, DecodingConfig(k=K, w=w, max_new_tokens=NEW_TOKENS))
    rewards = decoder.rewards(prompts, [result.token_ids for result in results])
    logprobs = [logprob for result in results for logprob in result.logprobs]
    row = Row(
        w=w,
        reward=_mean(rewards),
        diversity=_mean([diversity(result.text or "") for result in results]),
        perplexity=math.exp(-_mean(logprobs)),
        ended=_mean([result.finish_reason == "eos" for result in results]),
    )
    return row, [result.text or "" for result in results]


def _mean(values: list) -> float:
    return sum(values) / len(values)


def main(count: int, out: Path) -> None:
    decoder = ArgsDecoder.from_pretrained(LM, RM, device="cpu")
    prompts = [json.loads(line)["prompt"] for line in HELDOUT.read_text().splitlines()[:count]]
    rows, answers = [], {}
    for w in track(WEIGHTS, description="decoding"):
        row, answers[w] = measure(decoder, prompts, w)
        rows.append(row)

    about = (
        f"{len(prompts)} held-out prompts, k = {K}, at most {NEW_TOKENS} new tokens, float32 on the"
        f" CPU; args-fast {args_fast.__version__}, torch {torch.__version__}."
    )
    record = {"about": about, "rows": [asdict(row) for row in rows]}
    (out / "guidance.json").write_text(json.dumps(record, indent=2) + "\n")
    text = _markdown(about, rows, prompts, answers)
    (out / "guidance.md").write_text(text)
    print(text)


def _markdown(about: str, rows: list[Row], prompts: list[str], answers: dict) -> str:
    lines = [
        "# What guidance does to the embedded pair",
        "",
        "Made by `python examples/tiny_pair/guidance.py`: do not edit. w = 0 is greedy decoding.",
        about,
        "",
        "| w | reward | diversity | perplexity | ended |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.w:g} | {row.reward:+.3f} | {row.diversity:.3f} | {row.perplexity:.2f} "
        f"| {row.ended:.0%} |"
        for row in rows
    ]
    for i in range(3):
        lines += ["", f"**{prompts[i].split('Human: ')[1].split(chr(10))[0]}**", ""]
        lines += [f"- w = {w:g}: {answers[w][i].strip()}" for w in SHOWN]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=150, help="how many held-out prompts")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="where it is written"
    )
    arguments = parser.parse_args()
    main(arguments.prompts, arguments.out)
