"""Greedy decoding and ARGS on one prompt, measured alike."""

import time
from dataclasses import asdict, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from rich import box
from rich.padding import Padding
from rich.table import Table

from args_fast.cli.console import plain, results
from args_fast.eval.diversity import diversity

if TYPE_CHECKING:
    from args_fast import ArgsDecoder, DecodingConfig
    from args_fast.prompts import Prompt

WARM_UP = 8  # tokens
WIDEST = 120  # columns: longer lines are tiring to read


def compare(
    decoder: "ArgsDecoder", prompt: "Prompt", config: "DecodingConfig"
) -> dict[str, dict[str, Any]]:
    """Both decodes of one prompt by one engine, as plain JSON values: "greedy" and "args".

    ``seconds`` runs from the prompt to the last token, after a short decode to warm up.
    ``reward`` is r([prompt, text]), which greedy decoding does not ask for by itself, and
    ``mean_reward`` the mean of r after each token.
    """
    # ARGS first: it needs the longer list of things, and so finds what is missing before any wait.
    args = _measured(decoder, prompt, config)
    greedy = _measured(decoder, prompt, replace(config, k=1, w=0.0, temperature=None))
    return {"greedy": greedy, "args": args}


def _measured(decoder: "ArgsDecoder", prompt: "Prompt", config: "DecodingConfig") -> dict[str, Any]:
    decoder.generate(prompt, replace(config, max_new_tokens=min(WARM_UP, config.max_new_tokens)))
    began = time.perf_counter()
    (result,) = decoder.generate(prompt, config)
    seconds = time.perf_counter() - began
    rewards = decoder.token_rewards(prompt, result.token_ids)
    return {
        "config": asdict(config),
        **result.as_json(),
        "reward": _finite(rewards[-1]),
        "mean_reward": _finite(sum(rewards) / len(rewards)),
        "diversity": diversity(result.text or ""),
        "seconds": seconds,
        "tokens_per_second": len(result.token_ids) / seconds,
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def table(prompt: str, both: dict[str, dict[str, Any]], config: "DecodingConfig") -> Padding:
    """The two texts side by side, and below them what was measured."""
    heading = f"ARGS k={config.k} w={config.w:g}"
    if config.temperature is not None:
        heading += f" temperature={config.temperature:g} seed={config.seed}"
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=plain(prompt, "bold"),
        title_justify="left",
        width=min(results.width, WIDEST),
        show_edge=False,
        pad_edge=False,
    )
    shown.add_column(style="dim")
    shown.add_column("greedy", ratio=1)
    shown.add_column(heading, ratio=1)

    def row(name: str, key: str, form: str) -> None:
        values = (record[key] for record in both.values())
        shown.add_row(name, *("-" if value is None else format(value, form) for value in values))

    texts = (record["text"].strip() for record in both.values())
    shown.add_row("text", *map(plain, texts), end_section=True)
    row("reward", "reward", "+.2f")
    row("mean reward", "mean_reward", "+.2f")
    row("diversity", "diversity", ".2f")
    shown.add_row("tokens", *(str(len(record["token_ids"])) for record in both.values()))
    row("tokens/s", "tokens_per_second", ".0f")
    row("ended by", "finish_reason", "")
    return Padding(shown, (0, 0, 1, 0))
