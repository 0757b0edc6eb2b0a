"""One question to the embedded language model, without a reward and guided by one."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.rewards import Reward
from args_fast.tiny_pair import LM

QUESTION = "I want to take good photos of flowers at noon. Do you have any tips?"


def show(reward: Reward, w: float) -> tuple[str, str]:
    """Print and return the plain answer and the guided one."""
    tokenizer = AutoTokenizer.from_pretrained(LM)
    decoder = ArgsDecoder(AutoModelForCausalLM.from_pretrained(LM), reward, tokenizer=tokenizer)
    turn = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    answers = []
    for weight in (0.0, w):
        config = DecodingConfig(k=10, w=weight, max_new_tokens=48)
        (result,) = decoder.generate(prompt, config)
        answers.append(result.text or "")
        print(f"w = {weight}: {answers[-1]}\n")
    return answers[0], answers[1]
