"""The answers of two methods to the prompts that both answered, from the folder of a run."""

from pathlib import Path

from args_fast.errors import EvaluationError
from args_fast.eval.cuts import cut_for_diversity
from args_fast.eval.judge import Pair
from args_fast.eval.prompts import kept_prompts
from args_fast.eval.records import Records


def pairs_of(folder: Path, method: str | None, opponent: str | None) -> tuple[str, str, list[Pair]]:
    """The pairs that a judge reads, cut as the published script cuts them.

    Args:
        folder: of a run.
        method: the one that is judged: in full, or a beginning that names one; None for the run's
            first of ARGS.
        other: what it is compared with; None for greedy.

    Returns:
        both methods in full, and the pairs in the order of the run's prompts.

    Raises:
        EvaluationError: the folder has no such methods.
    """
    items, _ = kept_prompts(folder / "prompts.json")
    with Records(folder / "samples.jsonl", ("method", "index")) as samples:
        known = list(dict.fromkeys(sample["method"] for sample in samples))
        own = _resolve(known, method, "args-")
        compared = _resolve(known, opponent, "greedy")
        if own == compared:
            raise EvaluationError(f"both methods are {own}; name two")
        pairs = []
        for index, item in enumerate(items):
            answers = [samples.get(key, index) for key in (own, compared)]
            if all(answer and "error" not in answer for answer in answers):
                texts = (cut_for_diversity(answer["response"]) for answer in answers if answer)
                pairs.append(Pair(index, item.text, *texts))
    if not pairs:
        raise EvaluationError(f"{own} and {compared} have no prompt in {folder} that both answered")
    return own, compared, pairs


def _resolve(known: list[str], asked_key: str | None, default: str) -> str:
    """The method in full. A beginning has to name one alone; the default takes the first."""
    if asked_key is None:
        matches = [key for key in known if key.startswith(default)][:1]
    elif asked_key in known:
        matches = [asked_key]
    else:
        matches = [key for key in known if key.startswith(asked_key)]
    if len(matches) != 1:
        raise EvaluationError(
            f"the method is {asked_key or default!r}; the run has {', '.join(known) or 'none'}: "
            "name one of them, or a beginning that no other has"
        )
    return matches[0]
