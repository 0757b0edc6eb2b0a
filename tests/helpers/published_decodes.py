"""The published implementation's tokens by the engine on one device, without a test framework.

    python tests/helpers/published_decodes.py --device cuda

float32 throughout, TF32 off: every one of the decodes must match, token for token.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Literal

import torch

from args_fast import ArgsDecoder, DecodingConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--fused-layers",
        action=argparse.BooleanOptionalAction,
        default="auto",
        help="layers of both models as one op, or through modules; the engine's choice otherwise",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth case only")
    arguments = parser.parse_args()
    options = {"fused": arguments.fused_layers, "every": arguments.every}
    wrong = check(GOLDEN, arguments.device, **options)
    for line in wrong:
        print(f"WRONG  {line}")
    return bool(wrong)


def check(
    golden: Path, device: str, *, fused: bool | Literal["auto"] = "auto", every: int = 1
) -> list[str]:
    """The decodes that differ, of each ``every``-th case: alone or in a batch with others of their
    model and options, with the language model looking ahead or not. A decoder that does not run the
    fused layers that it is asked for differs too."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    cases = json.loads((golden / "cases.json").read_text())[::every]
    groups: dict[tuple, list[dict]] = {}
    for case in cases:
        options = (case["family"], case["k"], case["w"], len(case["continuation"]))
        groups.setdefault(options, []).append(case)
    wrong, matched = [], 0
    for family, lookahead in product(sorted({case["family"] for case in cases}), (False, True)):
        decoder = ArgsDecoder.from_pretrained(
            golden / family / "lm",
            golden / family / "rm",
            device=device,
            dtype="float32",
            lookahead=lookahead,
            fused_layers=fused,
        )
        if fused is True and decoder.engine.lm.fused_layers() is None:
            wrong.append(f"{family}: its layers are not fused: {decoder.engine.lm.refusal}")
        for (name, k, w, steps), group in groups.items():
            if name != family:
                continue
            config = DecodingConfig(k=k, w=w, max_new_tokens=steps, eos_token_ids=[])
            prompts = [case["prompt"] for case in group]
            batch = decoder.generate(prompts, config)
            for case, together in zip(group, batch, strict=True):
                (alone,) = decoder.generate(case["prompt"], config)
                for how, result in (("alone", alone), ("in a batch", together)):
                    if result.token_ids == case["continuation"]:
                        matched += 1
                    else:
                        case_name = f"{family} k={k} w={w} lookahead={lookahead} {how}"
                        wrong.append(f"{case_name}: {result.token_ids}")
    print(f"{matched} of {4 * len(cases)} decodes on {device} equal the published ones")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
