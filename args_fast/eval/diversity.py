"""How little a text repeats itself, as the ARGS paper measures it."""

N = (2, 3, 4)


def diversity(text: str) -> float:
    """The product over n = 2, 3, 4 of unique n-grams / all n-grams, over the words between blanks.

    From the ARGS paper, section 3.1, "Evaluation metrics" (arXiv 2402.01694). 1 means that no two
    words ever follow one another twice. The paper leaves texts of fewer than four words open, which
    have no 4-grams: here they have diversity 0, as they have by the authors' published script, so
    that an empty answer never passes for a diverse one.
    """
    words = text.split()
    if len(words) < max(N):
        return 0.0
    product = 1.0
    for n in N:
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        product *= len(set(grams)) / len(grams)
    return product
