"""Results as tables: for the terminal and Markdown, as CSV, and as one HTML page."""

import csv
import html
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from args_fast.eval.measure import COHERENCE, REWARD, judge_measure
from args_fast.eval.results import PERPLEXITY

PARTS = ("mean", "low", "high", "count", "skipped")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
  color: #1b1b1f; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #d8d8de;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
small { color: #5c5c66; }
pre { overflow-x: auto; background: #f4f4f7; padding: 1rem; }
@media (prefers-color-scheme: dark) { body { color: #e6e6ea; background: #17171a; }
  th, td { border-color: #3a3a42; } pre { background: #222227; } small { color: #a0a0aa; } }
"""


@dataclass(frozen=True)
class Column:
    """One measure as a column.

    Attributes:
        title: its heading.
        name: of the measure in the results.
        form: a format of its values.
        gain: whether the difference to the baseline is shown too.
    """

    title: str
    name: str
    form: str
    gain: bool = False


def columns(results: dict[str, Any]) -> list[Column]:
    """The columns that have a value in some method."""
    judges = [Column(f"reward by {n}", judge_measure(n), "+.3f", True) for n in results["judges"]]
    every = [
        Column("reward", REWARD, "+.3f", True),
        *judges,
        Column("diversity", "diversity", ".3f"),
        Column("diversity (script)", "published_diversity", ".3f"),
        Column("coherence", COHERENCE, ".3f"),
        Column("perplexity", PERPLEXITY, ".2f"),
        Column("tokens", "tokens", ".1f"),
        Column("ended", "ended", ".2f"),
    ]
    return [column for column in every if any(_mean(m, column) is not None for m in _all(results))]


def cells(results: dict[str, Any]) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Headings, and for each method its cells: a value and its interval, each as text."""
    shown = columns(results)
    titles = ["method"]
    for column in shown:
        titles += [column.title, f"Δ {column.title}"] if column.gain else [column.title]
    titles += ["compression", "ms/token", "slowdown", "rows LM + RM"]
    return titles, [list(_cells(method, shown)) for method in _all(results)]


def markdown(results: dict[str, Any]) -> str:
    """The table in Markdown, with what it was made from below it."""
    titles, rows = cells(results)
    lines = [_row(titles), _row(["---", *("---:" for _ in titles[1:])])]
    lines += [_row([f"{value} {interval}".strip() for value, interval in row]) for row in rows]
    return "\n".join(lines) + "\n\n" + "\n".join(notes(results)) + "\n"


def comma_separated(results: dict[str, Any]) -> str:
    """The numbers as CSV: a row for each method and measure, intervals in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    gains = [f"gain_{part}" for part in ("mean", "low", "high")]
    writer.writerow(["method", "label", "measure", *PARTS, *gains])
    for method in _all(results):
        head = [method["method"], method["label"]]
        for name, value in method["measures"].items():
            gain = [value["gain"][part] for part in ("mean", "low", "high")]
            writer.writerow([*head, name, *(value[part] for part in PARTS), *gain])
        single = {"compression_ratio": method["compression_ratio"]}
        single |= {f"rows_{model}": rows for model, rows in method["rows_per_token"].items()}
        for name, number in single.items():
            writer.writerow([*head, name, number, "", "", method["answered"], "", "", "", ""])
        for name, spread in (method["speed"] or {}).items():
            ends = [spread["median"], spread["low"], spread["high"]]
            writer.writerow([*head, name, *ends, "", "", "", "", ""])
    return out.getvalue()


def page(results: dict[str, Any], title: str = "args-fast eval") -> str:
    """The table as one HTML page that needs nothing from elsewhere."""
    titles, rows = cells(results)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "\n".join(f"<tr>{''.join(map(_table_cell, row))}</tr>" for row in rows)
    about = "".join(f"<p>{html.escape(note)}</p>" for note in notes(results))
    made = {name: results[name] for name in ("settings", "prompts", "environment")}
    made_with = html.escape(json.dumps(made, indent=2, ensure_ascii=False))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{html.escape(title)}</h1><div class="wide"><table><thead><tr>{head}</tr>'
        f"</thead>\n<tbody>{body}</tbody></table></div>{about}\n"
        f"<details><summary>Made with</summary><pre>{made_with}</pre></details></body></html>\n"
    )


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader has to know about the numbers, a sentence or two each."""
    prompts, speed = results["prompts"], results["speed"]
    lines = [
        f"{prompts['count']} prompts of {results['settings']['data']}, at most "
        f"{results['settings']['max_new_tokens']} new tokens. In brackets: 95% intervals over "
        f"prompts (BCa bootstrap). Δ: the paired difference to {results['baseline']}.",
        "Reward: of the prompt with the response, end token included. Diversity: the paper's "
        f"formula; (script): the published script's ({results['words']}). Compression: bytes over "
        "gzipped bytes of all responses, higher is more repetitive. Ended: share of responses that "
        "came to an end. Rows: of each model per new token, by the algorithm.",
    ]
    if speed:
        lines.append(
            f"ms/token and slowdown: medians of {speed['tokens']} tokens one prompt at a time, the "
            f"prompt's own time excluded, on {speed['device']}; in brackets the range. The engine "
            "runs all but nucleus and contrastive, which have loops of their own."
        )
    if prompts["too_long"]:
        lines.append(f"{prompts['too_long']} prompts were too long and are left out.")
    for method in _all(results):
        if method["errors"]:
            lines.append(f"{method['label']}: {method['errors']} prompts could not be decoded.")
        skipped = {name: value["skipped"] for name, value in method["measures"].items()}
        for name, count in skipped.items():
            if count:
                lines.append(f"{method['label']}: {count} responses have no {name}.")
    return lines


# ---- cells ---------------------------------------------------------------------------------------


def _all(results: dict[str, Any]) -> list[dict[str, Any]]:
    return results["methods"]


def _mean(method: dict[str, Any], column: Column) -> float | None:
    return method["measures"].get(column.name, {}).get("mean")


def _cells(method: dict[str, Any], shown: list[Column]) -> Iterator[tuple[str, str]]:
    yield method["label"], ""
    for column in shown:
        value = method["measures"].get(column.name)
        yield _with_interval(value, column.form)
        if column.gain:
            yield _with_interval(value and value["gain"], column.form)
    ratio = method["compression_ratio"]
    yield ("-" if ratio is None else f"{ratio:.2f}"), ""
    for name, form in (("milliseconds_per_token", ".1f"), ("slowdown", ".2f")):
        spread = (method["speed"] or {}).get(name)
        value = spread and {"mean": spread["median"], "low": spread["low"], "high": spread["high"]}
        yield _with_interval(value, form)
    yield f"{method['rows_per_token']['lm']} + {method['rows_per_token']['rm']}", ""


def _with_interval(value: dict[str, Any] | None, form: str) -> tuple[str, str]:
    if value is None or value["mean"] is None:
        return "-", ""
    if value["low"] is None or value["high"] is None:
        return format(value["mean"], form), ""
    return format(value["mean"], form), f"[{value['low']:{form}}, {value['high']:{form}}]"


def _row(values: list[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _table_cell(cell: tuple[str, str]) -> str:
    value, interval = map(html.escape, cell)
    return f"<td>{value}{f'<br><small>{interval}</small>' if interval else ''}</td>"
