"""Reward-guided decoding beside greedy decoding, on three questions that the models have not seen.

What `make demo` runs. It uses the embedded pair, so it needs no download; `args-fast generate` does
the same for a question, and models, of your own.
"""

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.cli.compare import compare, table
from args_fast.cli.console import quiet_transformers, results
from args_fast.cli.pair import encode_prompt
from args_fast.tiny_pair import LM, RM

QUESTIONS = (
    "How do I grow mint in a clay pot?",
    "Can you help me bake carrot cake in a small oven? I do not have much time.",
    "What is the best way to plan a trip to Vienna with my parents?",
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
        both = compare(decoder, encode_prompt(decoder, question, raw=False), config)
        results.print(table(question, both, config))
    results.print('Try your own: .venv/bin/args-fast generate "How do I ...?" --compare-greedy')


if __name__ == "__main__":
    main()
