"""What lm-eval got from the server, against the language model in transformers.

python lm_eval_compare.py FOLDER_OF_THE_LM OUT.json
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.inference_mode()
def main(lm: str, out: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lm)
    model = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float32).eval()
    found = json.loads(Path(out).read_text())
    assert found
    worst = 0.0
    for each in found:
        context = tokenizer(each["context"]).input_ids
        whole = tokenizer(each["context"] + each["continuation"]).input_ids
        logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(context) - 1, len(whole) - 1)
        expected = sum(logprobs[i, whole[i + 1]].item() for i in places)
        greedy = all(logprobs[i].argmax().item() == whole[i + 1] for i in places)
        assert each["greedy"] == greedy, each
        worst = max(worst, abs(expected - each["logprob"]))
    print(f"{len(found)} log-likelihoods, the largest difference is {worst:.2e}")
    assert worst < 1e-3


if __name__ == "__main__":
    main(*sys.argv[1:])
