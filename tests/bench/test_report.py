"""The page says what was measured and what was computed, and takes its numbers from the files."""

import copy
import json
import re

import pytest

pytest.importorskip("matplotlib")

from args_fast.bench import baselines, roofline
from args_fast.bench.cases import Case
from args_fast.bench.report import write_report
from args_fast.bench.results import Results
from args_fast.errors import ConfigError

PNG = b"\x89PNG\r\n"


def figures(step, prefill=0.05):
    return {
        "new_tokens": 128,
        "prefill_seconds": prefill,
        "step_seconds": step,
        "step_seconds_low": step * 0.9,
        "step_seconds_high": step * 1.2,
        "tokens_per_second": 1 / step,
        "memory_before_bytes": 2**30,
        "peak_memory_bytes": 2**30 + 7 * 2**20,
    }


def record(case, args, greedy=0.010, **more):
    return {
        "case": case.as_json(),
        "complete": True,
        "cache": {
            "rm_bytes_per_sequence": 3 * 2**20,
            "rm_bytes_of_k_copies": 30 * 2**20,
            "bytes": 5 * 2**20,
        },
        "methods": {
            baselines.ARGS: figures(args),
            baselines.GREEDY: figures(greedy * 0.8),
            baselines.TRANSFORMERS: figures(greedy),
            baselines.STATIC: {"error": "RuntimeError: compiler missing"},
            baselines.K_COPIES: figures(4.4 * greedy),
        },
    } | more


def results(folder, device, cases, *, type="cuda", dry_run=False, day="2030-01-01", commit="abc"):
    about = {"device": device, "threads": 2, "cuda": "13.0", "commit": commit}
    about |= {"date": f"{day}T00:00:00+00:00", "versions": {"torch": "2.11.0", "triton": None}}
    machine = {"type": type, "bandwidth": 2e12, "peak": {"bfloat16": 1e14, "float32": 1e13}}
    path = folder / device.lower() / f"{day}-{commit}.json"
    Results(path, about, machine, cases, dry_run).write()


PAIR = Case("opt-2.7b", "opt-350m")


@pytest.fixture
def curve():
    """Four k on one pair, with ARGS at 10 ms + 1 ms per candidate."""
    points = (Case("opt-2.7b", "opt-350m", k=k) for k in (5, 10, 20, 40))
    return {case.key: record(case, 0.010 + 0.001 * case.k) for case in points}


def page(tmp_path):
    return write_report(tmp_path / "results", tmp_path / "REPORT.md").read_text()


def cells(text, start):
    """The cells of the one table row that starts so."""
    (line,) = re.findall(rf"^\| {re.escape(start)}.*$", text, flags=re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def slowdowns(text):
    return text.split("### Slowdown")[1].split("###")[0]


def test_the_headline_is_the_first_table_and_holds_what_a_reader_came_for(tmp_path, curve):
    small = Case("opt-125m", "opt-125m", dtype="float32", new_tokens=16)
    results(tmp_path / "results", "H100", curve)
    results(tmp_path / "results", "EPYC", {small.key: record(small, 0.08)}, type="cpu")
    text = page(tmp_path)
    assert re.findall("^## .*$", text, flags=re.MULTILINE)[0] == "## Headline"
    text = text.split("## Headline")[1].split("## ")[0]
    header = cells(text, "device")
    assert all("measured" in name or "computed" in name for name in header[4:9] + header[10:])
    (at_ten,) = re.findall(r"^\| H100 .*$", text, flags=re.MULTILINE)  # k = 10 alone
    row = dict(zip(header, [cell.strip() for cell in at_ten.strip("|").split("|")], strict=True))
    device = roofline.Device("", 2e12, {"bfloat16": 1e14}, "")
    at = {"k": 10, "t": 128 + 64, "batch": 1, "dtype": "bfloat16", "device": device}
    floor = roofline.floor("opt-2.7b", "opt-350m", **at)
    assert row["tokens/s, measured"] == "50"
    assert row["slowdown x transformers, measured"] == "2.00"
    assert row["slowdown x transformers, static + compile, measured"] == "-"
    assert row["slowdown x args-fast, measured"] == "2.50"
    assert row["floor of the slowdown, computed"] == f"{floor.slowdown:.2f}"
    assert row["x args-fast / floor"] == f"{2.5 / floor.slowdown:.2f}"
    assert row["peak memory GiB, measured"] == "1.01"
    assert "| EPYC | opt-125m + opt-125m | 128 | float32 |" in text


def test_the_papers_pair_stands_first_in_the_headline(tmp_path, curve):
    other = Case("llama-3-8b", "llama-3-8b")
    results(tmp_path / "results", "H100", curve | {other.key: record(other, 0.05)})
    text = page(tmp_path).split("## Headline")[1]
    assert text.index("opt-2.7b") < text.index("llama-3-8b")


def test_ours_with_other_options_has_a_table_of_its_own(tmp_path, curve):
    more = record(PAIR, 0.02, added=[{"started": "", "methods": [], "args": figures(0.021)}])
    more["methods"] |= {
        baselines.LOOKAHEAD: figures(0.018),
        baselines.ARGS_COMPILED: figures(0.016),
        baselines.GREEDY_COMPILED: figures(0.008),
    }
    results(tmp_path / "results", "H100", curve | {PAIR.key: more})
    text = page(tmp_path).split("### ARGS with other options")[1].split("###")[0]
    row = cells(text, "opt-2.7b + opt-350m | 10")
    assert row[5:] == ["20", "18", "16", "8", "2.00", "-"]
    assert "took 1.05 to 1.05 times" in text
    assert "opt-2.7b + opt-350m | 20" not in text


def test_the_parts_of_a_step_are_shares_of_what_was_measured(tmp_path, curve):
    spent = {"LM matrix products": 0.012, "attention": 0.002, "host, idle": 0.006}
    busy = {"parts": spent, "profile": {"steps": 4, "busy_seconds": 0.014}}
    failed = Case("opt-2.7b", "opt-350m", k=5)
    curve |= {
        PAIR.key: record(PAIR, 0.02, **busy),
        failed.key: record(failed, 0.02, parts_error="RuntimeError: no profiler"),
    }
    results(tmp_path / "results", "H100", curve)
    text = page(tmp_path)
    table = text.split("### Where a step's time goes")[1].split("###")[0]
    assert cells(table, "opt-2.7b + opt-350m | 10")[5:] == ["20", "60.0", "10.0", "30.0", "0.70"]
    assert "where a step's time goes: RuntimeError: no profiler" in text


def test_slowdowns_come_from_the_files(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    text = slowdowns(page(tmp_path))
    row = cells(text, "opt-2.7b + opt-350m | 10")
    assert row[:7] == ["opt-2.7b + opt-350m", "10", "128", "1", "bfloat16", "20", "18 to 24"]
    assert row[7:] == ["2.00", "-", "2.50", "4.40", "-", "abc"]


def test_the_floor_is_computed_from_this_devices_figures_and_said_to_be(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    text = page(tmp_path).split("### Against the floor")[1].split("###")[0]
    header = cells(text, "models | k")
    row = dict(zip(header, cells(text, "opt-2.7b + opt-350m | 10"), strict=True))
    device = roofline.Device("", 2e12, {"bfloat16": 1e14}, "")
    at = {"k": 10, "t": 128 + 64, "batch": 1, "dtype": "bfloat16", "device": device}
    floor = roofline.floor("opt-2.7b", "opt-350m", **at)
    assert row["slowdown floor, computed"] == f"{floor.slowdown:.2f}"
    assert row["ARGS floor ms, computed"] == f"{floor.step_seconds * 1e3:.3g}"
    assert row["ARGS ms, measured"] == "20"
    assert row["fraction of the roofline"] == f"{floor.step_seconds / 0.020:.0%}"


def test_every_table_is_marked(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    blocks = page(tmp_path).split("\n\n")
    tables = [i for i, block in enumerate(blocks) if block.startswith("|")]
    assert len(tables) == 7
    for i in tables:
        assert re.search("measured|reported", blocks[i - 1] + blocks[i].splitlines()[0]), blocks[i]


def test_slopes_are_fitted(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    assert "+1.000 ms per step for one more candidate (fitted to 4" in page(tmp_path)


def test_plots_are_pictures_that_the_page_shows(tmp_path, curve):
    long = Case("opt-2.7b", "opt-350m", prompt=1900)
    wide = Case("opt-2.7b", "opt-350m", batch=16)
    parts = {"parts": {"attention": 0.05}, "profile": {"steps": 4, "busy_seconds": 0.05}}
    curve |= {long.key: record(long, 0.03), wide.key: record(wide, 0.05, **parts)}
    results(tmp_path / "results", "H100", curve)
    text = page(tmp_path)
    shown = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(shown) == 5
    for axis in ("k", "prompt", "batch"):
        assert f"plots/h100-slowdown-by-{axis}.png" in shown
    for picture in shown:
        assert (tmp_path / picture).read_bytes().startswith(PNG)
    assert "### Where a step's time goes" in text


def test_the_papers_figure_stands_apart_with_its_device_and_ours(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    text = page(tmp_path).split("## SideStream the paper")[1].split("## ")[0]
    paper = cells(text, "reported by the paper")
    assert paper[1] == "A100-class, not ours"
    assert paper[6] == "1.9"
    assert cells(text, "measured")[1:5] == ["H100", "opt-2.7b + opt-350m", "10", "128"]
    assert "Ours: H100." in text


def test_without_a_gpu_it_says_so(tmp_path, curve):
    results(tmp_path / "results", "EPYC", curve, type="cpu")
    assert "No GPU has been measured yet" in page(tmp_path)
    results(tmp_path / "results", "H100", curve)
    text = page(tmp_path)
    assert "No GPU has been measured yet" not in text
    assert text.index("## H100") < text.index("## EPYC")


def test_dry_runs_and_unfinished_cases_are_left_out(tmp_path, curve):
    results(tmp_path / "results", "Toy", curve, dry_run=True)
    half = copy.deepcopy(curve)
    half[PAIR.key]["complete"] = False
    results(tmp_path / "results", "H100", half)
    text = page(tmp_path)
    assert "Toy" not in text
    text = slowdowns(text)
    assert "opt-2.7b + opt-350m | 10" not in text
    assert "opt-2.7b + opt-350m | 20" in text


def test_the_latest_of_two_measurements_counts(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    newer = {PAIR.key: record(PAIR, 0.015)}
    results(tmp_path / "results", "H100", newer, day="2030-02-01", commit="def")
    row = cells(slowdowns(page(tmp_path)), "opt-2.7b + opt-350m | 10")
    assert (row[5], row[-1]) == ("15", "def")


def test_what_failed_is_told(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    text = page(tmp_path).split("### What failed")[1]
    assert f"{baselines.STATIC}: RuntimeError: compiler missing" in text


def test_memory_is_what_a_method_adds(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    text = page(tmp_path).split("### Prompt and memory")[1]
    row = cells(text.split("###")[0], "opt-2.7b + opt-350m | 10")
    assert row[-5:] == ["12", "7", "7", "3.0", "30.0"]  # ARGS and its cache


def test_no_results_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="args-fast bench"):
        write_report(tmp_path / "results", tmp_path / "REPORT.md")


def test_results_files_are_plain_json(tmp_path, curve):
    results(tmp_path / "results", "H100", curve)
    (path,) = (tmp_path / "results").glob("*/*.json")
    assert json.loads(path.read_text())["cases"].keys() == curve.keys()
