"""A reward that has a small language model answer as a judge must: two scores, 1 to 9.

    PYTHONPATH=examples/eval args-fast serve --lm LM --reward-function form=two_scores:form \\
        --w 100 --k 128

Left alone, a model of 135 million parameters repeats the question. Of the answers with this form it
gives those that it finds likeliest, which says nothing about whether it can judge:
``args-fast judge --both-orders`` does.
"""

import re

FORM = re.compile(r"([1-9]( ([1-9])?)?)?")


def form(prompts: list[str], responses: list[str]) -> list[float]:
    """How much of "7 5" a response has, in letters; -1 for any other beginning."""
    return [float(len(text)) if FORM.fullmatch(text) else -1.0 for text in responses]
