"""How contrastive_search.json was made: the last release of transformers that has the method.

    python -m venv old && old/bin/pip install torch==2.13.0 transformers==4.55.4
    old/bin/python tests/eval/golden/make_contrastive_search.py

From 4.56 on, ``generate(penalty_alpha=..., top_k=...)`` loads code from the hub instead.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[3]
MODELS = {
    "args_fast/tiny_pair/lm": ([[71, 300, 12, 45], [5], list(range(40, 72))], 0),
    "tests/golden/opt/lm": ([[7, 8, 9], [100, 200, 300, 400, 500], [3]], 2),
    "tests/golden/llama/lm": ([[7, 8, 9], [100, 200, 300, 400, 500], [3]], 2),
}
OPTIONS = [(8, 0.6, 24), (4, 0.1, 24), (2, 0.9, 12)]  # k, alpha, new tokens
FILE = Path(__file__).with_name("contrastive_search.json")


@torch.no_grad()
def main() -> None:
    cases = []
    for folder, (prompts, eos) in MODELS.items():
        model = AutoModelForCausalLM.from_pretrained(ROOT / folder, torch_dtype="float32").eval()
        for prompt in prompts:
            for k, alpha, new in OPTIONS:
                ids = torch.tensor([prompt])
                tokens = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    penalty_alpha=alpha,
                    top_k=k,
                    max_new_tokens=new,
                    eos_token_id=eos,
                    do_sample=False,
                )[0, len(prompt) :].tolist()
                case = {"model": folder, "prompt": prompt, "k": k, "alpha": alpha, "eos": eos}
                cases.append(case | {"max_new_tokens": new, "tokens": tokens})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    lines = ",\n".join(json.dumps(case) for case in cases)
    FILE.write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
