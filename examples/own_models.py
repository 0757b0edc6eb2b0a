"""Your own models: python examples/own_models.py --lm org/lm --rm org/reward-model

Folders or hub ids, of safetensors. Without --lm and --rm the embedded pair stands in.
"""

import argparse

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.tiny_pair import LM, RM

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--lm", default=LM)
parser.add_argument("--rm", default=RM)
parser.add_argument("--device", default="auto")
chosen = parser.parse_args()

# Each model is proved before the first token: an error names what is wrong with it.
decoder = ArgsDecoder.from_pretrained(chosen.lm, chosen.rm, device=chosen.device)
for w in (0.0, 0.5, 1.5, 5.0):  # useful weights depend on the reward's scale: args-fast tune
    result = decoder.chat("Suggest a short walk.", DecodingConfig(w=w, max_new_tokens=32))
    print(f"w = {w}: {result.text}")
