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
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from args_fast import ArgsDecoder, DecodingConfig, tiny_pair
from args_fast.bench.timing import commit, device_name, environment, slug
from args_fast.errors import ConfigError
from args_fast.models.loading import resolve_device
from args_fast.quantization import KINDS, check, weight_bytes

RESULTS = Path(__file__).parent / "results"


def agreement(
    decoder: ArgsDecoder, prompts: list[list[int]], texts: list[list[int]], config: DecodingConfig
) -> dict[str, float]:
    """How far a decoder chooses the tokens of ``texts`` behind ``prompts``."""
    # Each place is a prompt of its own, and one token is asked for.
    pairs = list(zip(prompts, texts, strict=True))
    places = [[*prompt, *text[:t]] for prompt, text in pairs for t in range(len(text))]
    wanted = [token for text in texts for token in text]
    one = DecodingConfig(
        k=config.k, w=config.w, max_new_tokens=1, eos_token_ids=config.eos_token_ids
    )
    chosen = [result.token_ids[0] for result in decoder.generate(places, one)]
    free = [result.token_ids for result in decoder.generate(prompts, config)]
    before = [_common(text, own) for text, own in zip(texts, free, strict=True)]
    return {
        "forced": sum(a == b for a, b in zip(wanted, chosen, strict=True)) / len(wanted),
        "free_prefix": sum(before) / len(wanted),
        "free_whole": sum(a == b for a, b in zip(texts, free, strict=True)) / len(texts),
        "places": len(wanted),
    }


def _common(one: list[int], other: list[int]) -> int:
    """Tokens before the first difference."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((place for place, equal in enumerate(same) if not equal), min(len(one), len(other)))


def markdown(report: dict[str, Any]) -> str:
    facts = report["environment"]
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if v)
    lines = [
        f"# Quantized weights and the choices of {report['lm']} with {report['rm']}",
        "",
        f"Measured {facts['date']} on {facts['device']}, commit {facts['commit']}; {versions}, "
        f"torchao {report['torchao']}; {report['dtype']}, k = {report['k']}, w = {report['w']}, "
        f"{report['prompts']} prompts.",
        "",
        "| language model | reward model | MB of weights | equal choices | before the first "
        "difference | equal texts |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case in report["cases"]:
        size = f"{case['lm_bytes'] / 1e6:.1f} + {case['rm_bytes'] / 1e6:.1f}"
        shares = " | ".join(f"{case[name]:.1%}" for name in ("forced", "free_prefix", "free_whole"))
        kinds = f"{case['lm'] or report['dtype']} | {case['rm'] or report['dtype']}"
        lines.append(f"| {kinds} | {size} | {shares} |")
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for results")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    try:
        for kind in options.kinds:
            check(kind, "--kinds", device)
    except ConfigError as error:
        parser.error(str(error))

    def load(lm: str | None = None, rm: str | None = None) -> ArgsDecoder:
        return ArgsDecoder.from_pretrained(
            options.lm,
            options.rm,
            device=device,
            dtype=options.dtype,
            lm_quantization=lm,
            rm_quantization=rm,
        )

    def case(decoder: ArgsDecoder, lm: str | None, rm: str | None) -> dict[str, Any]:
        sizes = {
            "lm_bytes": weight_bytes(decoder.language_model),
            "rm_bytes": weight_bytes(decoder.reward_model),
        }
        return {"lm": lm, "rm": rm, **sizes, **agreement(decoder, prompts, texts, config)}

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

    report = {
        "environment": environment(device),
        "torchao": version("torchao"),
        "lm": "/".join(Path(options.lm).parts[-2:]),
        "rm": "/".join(Path(options.rm).parts[-2:]),
        "dtype": str(plain.language_model.dtype).removeprefix("torch."),
        "k": options.k,
        "w": options.w,
        "prompts": len(prompts),
        "cases": cases,
    }
    folder = options.results / slug(device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"quantization-{date.today()}-{commit()}.json"
    file.write_text(json.dumps(report, indent=1))
    file.with_suffix(".md").write_text(markdown(report))
    print(markdown(report), file, sep="\n")


if __name__ == "__main__":
    main()
