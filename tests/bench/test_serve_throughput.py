"""The benchmark of the server runs to its end, on the embedded pair."""

import json

from args_fast.bench import serve_throughput
from args_fast.tiny_pair import LM, RM


def test_every_mode_is_measured(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(serve_throughput, "CLIENTS", (1, 3))
    command = ["serve_throughput", "--lm", str(LM), "--rm", str(RM), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--rounds", "1"])
    serve_throughput.main()
    seconds = json.loads(out.read_text())["seconds"]
    assert list(seconds) == ["1", "3"]
    assert all(set(modes) == set(serve_throughput.MODES) for modes in seconds.values())
    assert all(len(times) == 1 for modes in seconds.values() for times in modes.values())
    assert " 3 clients, tokens/s (cost): engine" in capsys.readouterr().out
