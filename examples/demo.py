"""Reward-guided decoding beside greedy decoding, on three questions held out from training.

They are three that greedy decoding answers badly; it answers others well, and the means over 150
are in examples/tiny_pair/guidance.md. `make demo` runs this. It uses the embedded pair, so it needs
no download; `args-fast generate` does the same for a question, and models, of your own.
"""

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.cli.compare import compare, table
from args_fast.cli.console import quiet_transformers, results
from args_fast.cli.pair import as_prompt
from args_fast.tiny_pair import LM, RM

QUESTIONS = (
    "How can I clean the sofa with baking soda?",
    "Is it hard to teach my spaniel to sit? I would like to try. I am not very patient.",
    "I want to take good photos of flowers at noon. Do you have any tips?",
)


def main() -> None:
    quiet_transformers()
    decoder = ArgsDecoder.from_pretrained(LM, RM)
    config = DecodingConfig(k=10, w=1.5, max_new_tokens=96)
    results.print(
        "Greedy decoding takes the language model's likeliest token. ARGS lets a reward model "
        "judge the ten likeliest at every step.\n"
    )
    for question in QUESTIONS:
        both = compare(decoder, as_prompt(question, chat=True), config)
        results.print(table(question, both, config))
    results.print(
        'Try your own: .venv/bin/args-fast generate --chat "How do I ...?" --compare-greedy'
    )


if __name__ == "__main__":
    main()
