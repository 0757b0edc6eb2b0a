"""Reward-guided decoding next to greedy decoding, on a real language model.

`make demo` runs this. The language model is SmolLM2-135M-Instruct and the reward model a LoRA
adapter of ours that prefers warm, upbeat answers (examples/smollm2/README.md). Where the language
model's package is not installed, or with --tiny, the pair inside the package stands in.

The messages are the first three of the held-out ones that ask something, in their order: nothing
was picked by what came out. `args-fast generate` does the same for messages, and models, of your
own.
"""

import argparse
import time

from transformers import AutoModelForCausalLM

from args_fast import ArgsDecoder, DecodingConfig, smollm2, tiny_pair
from args_fast.cli.compare import compare, table
from args_fast.cli.console import note, quiet_transformers, results
from args_fast.cli.pair import as_prompt
from args_fast.errors import MissingPackageError

TINY_QUESTIONS = (
    "How can I clean the sofa with baking soda?",
    "Is it hard to teach my spaniel to sit? I would like to try. I am not very patient.",
    "I want to take good photos of flowers at noon. Do you have any tips?",
)


def main(*, tiny: bool) -> None:
    quiet_transformers()
    began = time.perf_counter()
    try:
        decoder, prompts, new_tokens = tiny_decoder() if tiny else real_decoder()
    except (MissingPackageError, OSError) as error:
        note(f"The tiny pair inside the package stands in for the real one: {error}.")
        decoder, prompts, new_tokens = tiny_decoder()
    results.print(
        "Greedy decoding takes the language model's likeliest token. ARGS lets a reward model "
        "judge the ten likeliest at every step.\n"
    )
    config = DecodingConfig(k=10, w=1.5, max_new_tokens=new_tokens)
    for prompt in prompts:
        both = compare(decoder, as_prompt(prompt, chat=True), config)
        results.print(table(prompt, both, config))
    note(f"{time.perf_counter() - began:.0f} seconds, loading included")
    results.print(
        'Try your own: .venv/bin/args-fast generate --chat "How do I ...?" --compare-greedy'
    )


def real_decoder() -> tuple[ArgsDecoder, list[str], int]:
    """The decoder, its messages and the number of new tokens."""
    smollm2.check_installed()
    note(
        "SmolLM2-135M-Instruct and a reward model trained on it. The first run writes the language "
        "model to ~/.cache/args-fast (540 MB, half a minute); then it is about a minute on two "
        "cores. With --tiny: the pair inside the package, seconds."
    )
    folder = smollm2.lm()
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", use_safetensors=True)
    decoder = ArgsDecoder(lm, smollm2.reward_model(), tokenizer=smollm2.tokenizer())
    asking = [prompt for prompt in smollm2.prompts() if prompt.endswith("?")]
    return decoder, asking[:3], 48


def tiny_decoder() -> tuple[ArgsDecoder, list[str], int]:
    """As ``real_decoder``, on questions that greedy decoding answers badly; it answers others well,
    and the means over 150 are in examples/tiny_pair/guidance.md."""
    decoder = ArgsDecoder.from_pretrained(tiny_pair.LM, tiny_pair.RM)
    return decoder, list(TINY_QUESTIONS), 96


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="use the pair inside the package")
    main(tiny=parser.parse_args().tiny)
