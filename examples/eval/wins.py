"""How often each method wins, ties or loses against greedy decoding, by every reward of a run.

    python examples/eval/wins.py runs/table3

Reads the scores that ``args-fast eval`` left in the folder. Where there is no language model to
judge answers (``args-fast judge``), rewards that did not guide stand in.
"""

import json
import sys
from pathlib import Path

from statsmodels.stats.proportion import proportion_confint


def main(folder: Path) -> None:
    scores: dict[str, dict[str, dict[int, float]]] = {}  # judge -> method -> prompt -> value
    for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        name = record["measure"]
        if record["value"] is not None and (name == "reward" or name.startswith("judge:")):
            by_method = scores.setdefault(name.rpartition("/")[2], {})
            by_method.setdefault(record["method"], {})[record["index"]] = record["value"]
    print("| judge | method | prompts | win | tie | lose | win or tie, 95% |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for judge, by_method in scores.items():
        greedy = by_method["greedy"]
        for method, values in by_method.items():
            if method != "greedy":
                print(row(judge, method, [values[i] - greedy[i] for i in values if i in greedy]))


def row(judge: str, method: str, leads: list[float]) -> str:
    """Wilson's interval for the share that greedy decoding does not win."""
    count = len(leads)
    won, tied = sum(lead > 0 for lead in leads), sum(lead == 0 for lead in leads)
    low, high = proportion_confint(won + tied, count, method="wilson")
    shares = " | ".join(f"{part / count:.0%}" for part in (won, tied, count - won - tied))
    return f"| {judge} | {method} | {count} | {shares} | {low:.0%} to {high:.0%} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
