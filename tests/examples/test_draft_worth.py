"""The measurement of drafts runs, and compares tokens."""

import json
import sys

import scripts
from args_fast.tiny_pair import LM, RM

draft_worth = scripts.load("examples/smollm2/draft_worth.py")


def test_every_use_is_measured_with_every_drafter(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(draft_worth, "WEIGHTS", (0.5, 1.0))
    monkeypatch.setattr(draft_worth, "KS", (3,))
    out = tmp_path / "worth.json"
    options = {"--lm": LM, "--rm": RM, "--drafter": LM, "--tokens": 6, "--rounds": 1, "--out": out}
    monkeypatch.setattr(sys, "argv", ["draft_worth", *(str(x) for o in options.items() for x in o)])
    draft_worth.main()
    report = json.loads(out.read_text())
    assert report["row_cost"] > -1
    uses = {name: rows for name, rows in report.items() if isinstance(rows, dict)}
    assert sorted(uses) == ["chat", "copy", "samples", "sweep"]
    for rows in uses.values():
        assert list(rows) == ["none", "ngram", "history", "auto", "small LM"]
        assert all(row["same_tokens"] for row in rows.values())
        assert rows["none"]["drafted"] == 0
        assert rows["small LM"]["accepted"] > 0
    sweep = uses["sweep"]["history"]
    assert sweep["accepted"] > 0
    assert sweep["tokens_per_pass"] > 1
    assert "sweep" in capsys.readouterr().out
