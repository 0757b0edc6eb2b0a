"""ARGS from within Hugging Face: one ``generate``, a batch, and a pipeline.

python examples/huggingface/generate.py
"""

import argparse

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TextStreamer,
    pipeline,
)

from args_fast.integrations.transformers import reward_guided
from args_fast.tiny_pair import LM, RM  # a tiny pair inside the package: no download

argparse.ArgumentParser(description=__doc__).parse_args()
lm = AutoModelForCausalLM.from_pretrained(LM, dtype="float32").eval()
reward = AutoModelForSequenceClassification.from_pretrained(RM, dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained(LM, padding_side="left")
guided = reward_guided(reward, k=10, w=1.5)

messages = [{"role": "user", "content": "How do I keep basil alive indoors?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
lm.generate(**inputs, custom_generate=guided, max_new_tokens=40, streamer=streamer)

texts = ["\n\nHuman: Suggest a short walk.\n\nAssistant:", "\n\nHuman: Hello.\n\nAssistant:"]
batch = tokenizer(texts, padding=True, return_tensors="pt")
out = lm.generate(**batch, custom_generate=guided, max_new_tokens=20, return_dict_in_generate=True)
for ids, rewards in zip(out.sequences, out.rewards, strict=True):
    print(f"{rewards[~rewards.isnan()][-1]:.2f}", tokenizer.decode(ids, skip_special_tokens=True))

chat = pipeline("text-generation", model=lm, tokenizer=tokenizer)
greedy = {"do_sample": False, "max_new_tokens": 20}  # a pipeline draws unless it is told not to
print(chat(messages, custom_generate=guided, **greedy)[0]["generated_text"][-1])
