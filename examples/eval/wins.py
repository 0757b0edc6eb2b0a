"""How often each method of a run wins, ties or loses against another, and by how much.

    python examples/eval/wins.py runs/table3 [--over METHOD]

Reads what ``args-fast eval`` or ``sweep`` left in the folder: every reward, coherence, diversity,
prompt by prompt, against greedy decoding or the method that is named (a beginning of it will do).
Where there is no language model to judge answers (``args-fast judge``), rewards that did not guide
stand in.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from statsmodels.stats.proportion import proportion_confint

from args_fast.eval.diversity import diversity
from args_fast.eval.intervals import gain_interval

Values = dict[str, dict[str, dict[int, float]]]  # measure -> method -> prompt -> value


def main(folder: Path, over: str) -> None:
    print("| measure | method | prompts | win | tie | lose | win or tie, 95% | difference, 95% |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | --- |")
    for measure, by_method in values(folder).items():
        other = next((method for method in by_method if method.startswith(over)), None)
        for method, own in by_method.items():
            if other is not None and method != other:
                print(row(measure, method, own, by_method[other]))


def values(folder: Path) -> Values:
    """The values of a run."""
    found: Values = defaultdict(lambda: defaultdict(dict))
    for record in records(folder / "scores.jsonl"):
        if record["value"] is not None and record["measure"] != "surprise":
            # A judge is named by its folder, and an encoder too.
            measure = record["measure"].split(":")[0]
            if measure == "judge":
                measure = record["measure"].rpartition("/")[2]
            found[measure][record["method"]][record["index"]] = record["value"]
    for sample in records(folder / "samples.jsonl"):
        if "error" not in sample:
            found["diversity"][sample["method"]][sample["index"]] = diversity(sample["response"])
    return found


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def row(measure: str, method: str, own: dict[int, float], other: dict[int, float]) -> str:
    """Wilson's interval for the share that the other does not win, BCa's for the mean lead."""
    leads = [own[index] - other[index] for index in own.keys() & other.keys()]
    won, tied = sum(lead > 0 for lead in leads), sum(lead == 0 for lead in leads)
    low, high = proportion_confint(won + tied, len(leads), method="wilson")
    parts = (won, tied, len(leads) - won - tied)
    shares = " | ".join(f"{part / len(leads):.0%}" for part in parts)
    lead = gain_interval(own, other, seed=0)
    difference = f"{lead.mean:+.3f}"
    if lead.low is not None:
        difference += f" ({lead.low:+.3f} to {lead.high:+.3f})"
    return (
        f"| {measure} | {method} | {len(leads)} | {shares} | {low:.0%} to {high:.0%} | "
        f"{difference} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--over", default="greedy", metavar="METHOD")
    given = parser.parse_args()
    main(given.run, given.over)
