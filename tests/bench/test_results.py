"""Results are continued by the code that made them, and never half written."""

import json
from types import SimpleNamespace

import pytest
import torch

from args_fast.bench import results
from args_fast.bench.timing import summary

CPU = torch.device("cpu")


@pytest.fixture
def facts(monkeypatch):
    """The environment that is found; a test may change it."""
    found = {
        "device": "A CPU",
        "threads": 2,
        "versions": {"torch": "2.13"},
        "switches": {},
        "commit": "0123456789",
    }
    monkeypatch.setattr(results, "environment", lambda device: dict(found))
    monkeypatch.setattr(results, "sources", lambda: "abcdef012345")
    return found


def test_file_is_named_after_its_kind_day_and_code(tmp_path, facts):
    file, document = results.begin(tmp_path, "ops", CPU, cases=[])
    assert file.name.startswith("ops-2")
    assert file.name.endswith("-0123456789-abcdef.json")
    assert document == {"environment": {**facts, "sources": "abcdef012345"}, "cases": []}


def test_document_is_continued_by_the_same_code_on_the_same_device(tmp_path, facts, monkeypatch):
    file, document = results.begin(tmp_path, "ops", CPU, cases=[])
    results.write(file, document | {"cases": [1]}, "words")
    assert results.begin(tmp_path, "ops", CPU, cases=[])[1]["cases"] == [1]
    assert results.begin(tmp_path, "slowdown", CPU, cases=[])[1]["cases"] == []
    for change in ({"threads": 4}, {"versions": {"torch": "9"}}, {"commit": "fedcba9876"}):
        before = dict(facts)
        facts.update(change)
        assert results.begin(tmp_path, "ops", CPU, cases=[])[1]["cases"] == []
        facts.update(before)
    monkeypatch.setattr(results, "sources", lambda: "others")
    assert results.begin(tmp_path, "ops", CPU, cases=[])[1]["cases"] == []


def test_what_was_measured_is_not_among_the_sources(tmp_path, monkeypatch):
    package = SimpleNamespace(__path__=[tmp_path])
    monkeypatch.setattr(results, "import_module", lambda name: package)
    monkeypatch.setattr(results, "root", lambda: tmp_path / "results")
    code, kept = tmp_path / "code.py", tmp_path / "results" / "device" / "ops.json"
    code.write_text("1")
    before = results.sources()
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert results.sources() == before
    code.write_text("2")
    assert results.sources() != before


def test_results_go_where_OUT_says_too(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    results.write(tmp_path / "kept" / "ops.json", {"a": 1}, "words\n")
    for folder in ("kept", "out"):
        assert json.loads((tmp_path / folder / "ops.json").read_text()) == {"a": 1}
        assert (tmp_path / folder / "ops.md").read_text() == "words\n"
        assert not list((tmp_path / folder).glob("*.part"))


def test_a_number_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(tmp_path / "ops.json", {"a": float("nan")}, "")


def test_results_are_kept_in_the_checkout_or_in_the_current_folder(tmp_path, facts, monkeypatch):
    file, _ = results.begin(None, "ops", CPU)
    assert file.parts[-4:-1] == ("bench", "results", "a-cpu")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "site-packages/bench/results.py"))
    monkeypatch.chdir(tmp_path)
    assert results.begin(None, "ops", CPU)[0].parent == tmp_path / "bench-results" / "a-cpu"


def test_summary_of_one_measurement_is_itself():
    assert summary([2.0]) == {
        "median": 2.0,
        "low": 2.0,
        "high": 2.0,
        "minimum": 2.0,
        "repeats": 1,
    }
