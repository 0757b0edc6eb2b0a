"""The benchmark of the server runs to its end, on the embedded pair."""

import json

import pytest

from args_fast.bench import serve_throughput
from args_fast.tiny_pair import LM, RM


def test_every_mode_is_measured(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(serve_throughput, "CLIENTS", (1, 3))
    command = ["serve_throughput", "--lm", str(LM), "--rm", str(RM), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--rounds", "1"])
    serve_throughput.main()
    document = json.loads(out.read_text())
    assert list(document["clients"]) == ["1", "3"]
    for found in document["clients"].values():
        assert found["rounds"] == 1
        for mode in ("whole", "stream"):
            expected = 1 - found[mode]["tokens_per_second"] / found["engine"]["tokens_per_second"]
            assert found[mode]["cost"] == pytest.approx(expected, abs=0.02)
    assert document["environment"]["commit"]
    assert " 3 clients, tokens/s (cost): engine" in capsys.readouterr().out
