"""What quantized weights do to the choices: how many tokens stay those of the unquantized pair.

    python -m args_fast.bench.quantization                       # the embedded pair, on this device
    python -m args_fast.bench.quantization --lm org/lm --rm org/rm --kinds int8 --dtype bfloat16

Each prompt is decoded by the unquantized pair first. Then, for each way to quantize the language
model, the reward model or both,

- forced: before every token of that text, the quantized pair chooses the next one; the share of
  equal choices. An error does not multiply here.
- free: the quantized pair decodes by itself; the tokens before the first difference, as a share of
  the text, and the share of texts that are the same to the end.

Results: bench/results/<device>/quantization-<date>-<commit>.json and, to read, .md.
"""

import argparse
import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from args_fast import ArgsDecoder, DecodingConfig, tiny_pair
from args_fast.bench import results, slowdown
from args_fast.bench.timing import describe
from args_fast.errors import ConfigError
from args_fast.models.loading import resolve_device
from args_fast.quantization import KINDS, check, weight_bytes

HEADER = ["language model", "reward model", "MB of weights", "equal choices"]
HEADER += ["before the first difference", "equal texts"]


def agreement(
    decoder: ArgsDecoder, prompts: list[list[int]], texts: list[list[int]], config: DecodingConfig
) -> dict[str, float]:
    """How far a decoder chooses the tokens of ``texts`` after ``prompts``."""
    # Each token's place is a prompt of its own, and one token is asked for.
    pairs = list(zip(prompts, texts, strict=True))
    places = [[*prompt, *text[:t]] for prompt, text in pairs for t in range(len(text))]
    tokens = [token for text in texts for token in text]
    single = DecodingConfig(
        k=config.k, w=config.w, max_new_tokens=1, eos_token_ids=config.eos_token_ids
    )
    chosen = [result.token_ids[0] for result in decoder.generate(places, single)]
    free = [result.token_ids for result in decoder.generate(prompts, config)]
    both = list(zip(texts, free, strict=True))
    same = [sum(1 for _ in takewhile(lambda ab: ab[0] == ab[1], zip(a, b))) for a, b in both]  # noqa: B905 (of different lengths)
    return {
        "forced": sum(a == b for a, b in zip(tokens, chosen, strict=True)) / len(tokens),
        "free_prefix": sum(same) / len(tokens),
        "free_whole": sum(a == b for a, b in both) / len(texts),
        "places": len(tokens),
    }


def markdown(report: dict[str, Any]) -> str:
    rows = [HEADER]
    for case in report["cases"]:
        size = f"{case['lm_bytes'] / 1e6:.1f} + {case['rm_bytes'] / 1e6:.1f}"
        shares = [f"{case[name]:.1%}" for name in ("forced", "free_prefix", "free_whole")]
        kinds = [case[model] or report["dtype"] for model in ("lm", "rm")]
        rows.append([*kinds, size, *shares])
    return (
        f"# Quantized weights and the choices of {report['lm']} with {report['rm']}\n\n"
        f"{describe(report['environment'])}; {report['dtype']}, k = {report['k']}, "
        f"w = {report['w']}, {report['prompts']} prompts.\n\n{slowdown.as_markdown(rows)}\n"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lm", default=str(tiny_pair.LM), help="default: the embedded pair's")
    parser.add_argument("--rm", default=str(tiny_pair.RM), help="default: the embedded pair's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--dtype", default="auto", help="of the unquantized weights and the rest")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--prompts", type=int, default=32, help="of the embedded pair's held-out")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--w", type=float, default=1.5)
    parser.add_argument("--results", type=Path, help="folder for results (bench/results)")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    try:
        for kind in options.kinds:
            check(kind, "--kinds", device)
    except ConfigError as error:
        parser.error(str(error))

    def load(lm: str | None = None, rm: str | None = None) -> ArgsDecoder:
        names, types = (options.lm, options.rm), {"device": device, "dtype": options.dtype}
        return ArgsDecoder.from_pretrained(*names, **types, lm_quantization=lm, rm_quantization=rm)

    def case(decoder: ArgsDecoder, lm: str | None, rm: str | None) -> dict[str, Any]:
        sizes = map(weight_bytes, (decoder.language_model, decoder.reward_model))
        weights = dict(zip(("lm_bytes", "rm_bytes"), sizes, strict=True))
        return {"lm": lm, "rm": rm, **weights, **agreement(decoder, prompts, texts, config)}

    plain = load()
    if plain.tokenizer is None:
        parser.error(f"{options.lm} comes without a tokenizer, and the prompts are texts")
    config = DecodingConfig(k=options.k, w=options.w, max_new_tokens=options.tokens)
    lines = tiny_pair.HELDOUT.read_text().splitlines()[: options.prompts]
    prompts = [plain.tokenizer(json.loads(line)["prompt"]).input_ids for line in lines]
    texts = [result.token_ids for result in plain.generate(prompts, config)]
    cases = [case(plain, None, None)]  # with itself: what batching alone does to the choices
    for kind in options.kinds:
        for lm, rm in ((kind, None), (None, kind), (kind, kind)):
            cases.append(case(load(lm, rm), lm, rm))

    file, report = results.begin(
        results.results_folder(device, options.results), "quantization", device
    )
    report |= {
        "lm": "/".join(Path(options.lm).parts[-2:]),
        "rm": "/".join(Path(options.rm).parts[-2:]),
        "dtype": str(plain.language_model.dtype).removeprefix("torch."),
        "k": options.k,
        "w": options.w,
        "prompts": len(prompts),
        "cases": cases,
    }
    results.write(file, report, markdown(report))
    print(markdown(report), file.with_suffix(".md"), sep="\n")


if __name__ == "__main__":
    main()
