"""One rank of a pair of models that is split by transformers' own tensor parallelism.

python parallel_worker.py RANK RANKS PORT < cases.json     # prints what it decodes, case by case
"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.distributed.configuration_utils import DistributedConfig

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.tiny_pair import LM, RM


def main(rank, ranks, port):
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    torch.distributed.init_process_group("gloo")
    split = {"distributed_config": DistributedConfig(tp_plan="auto"), "dtype": torch.float32}
    lm = AutoModelForCausalLM.from_pretrained(LM, **split).eval()
    for asked in json.load(sys.stdin):
        rm_options = split if asked["split_rm"] else {"dtype": torch.float32}
        rm = AutoModelForSequenceClassification.from_pretrained(RM, **rm_options).eval()
        decoder = ArgsDecoder(lm, rm)
        results = decoder.generate(asked["prompts"], DecodingConfig(**asked["config"]))
        answer = {
            "results": [result.as_json() for result in results],
            "kv_heads": [cache.layout.kv_heads for cache in decoder.engine.caches],
        }
        print("answer:", json.dumps(answer))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
