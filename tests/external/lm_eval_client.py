"""lm-eval's ``local-completions`` on a task from local data; its log-likelihoods go to a file.

python lm_eval_client.py FOLDER_OF_THE_LM OUT.json
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OPENAI_API_KEY"] = os.environ["ARGS_KEY"]

import lm_eval
from lm_eval.tasks import TaskManager

QUESTIONS = [
    ("\n\nHuman: How do I grow basil?\n\nAssistant:", " Here is a simple way", " Zebra the of and"),
    ("\n\nHuman: Suggest a short walk.\n\nAssistant:", " Sure. First", " No! I will not say."),
    ("\n\nHuman: How do I fix a slow phone?\n\nAssistant:", " Turn the phone off", " Basil."),
]
TASK = """
task: args_fast_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def main(lm: str, out: str) -> None:
    print("lm-eval", version("lm-eval"))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "questions.jsonl")
        lines = [{"question": q, "choices": [a, b]} for q, a, b in QUESTIONS]
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        Path(folder, "task.yaml").write_text(TASK.format(data=data))
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "args-fast-tiny",
                "base_url": os.environ["ARGS_URL"] + "/v1/completions",
                "tokenizer": lm,
                "tokenizer_backend": "huggingface",
                "tokenized_requests": True,
                "num_concurrent": 4,
                "max_length": 512,
            },
            tasks=["args_fast_local"],
            task_manager=TaskManager(include_path=folder),
        )
    found = []
    for sample in results["samples"]["args_fast_local"]:
        for argument, response in zip(sample["arguments"], sample["resps"], strict=True):
            logprob, greedy = response[0]
            found.append(
                {
                    "context": argument[0],
                    "continuation": argument[1],
                    "logprob": float(logprob),
                    "greedy": greedy in (True, "True"),
                }
            )
    Path(out).write_text(json.dumps(found))
    print("results", results["results"]["args_fast_local"])


if __name__ == "__main__":
    main(*sys.argv[1:])
