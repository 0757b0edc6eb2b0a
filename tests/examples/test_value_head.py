"""The value head's script: it finds what the answers differ by, and its file guides."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.rewards import Head
from args_fast.tiny_pair import HELDOUT, LM

SCRIPT = Path(__file__).parents[2] / "examples" / "value_head" / "train.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_value_head", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def lines(kind):
    pairs = [json.loads(line) for line in HELDOUT.read_text().splitlines()[:40]]
    if kind == "pairwise":
        return pairs
    return [
        {"prompt": pair["prompt"], "response": pair[name], "rating": rating}
        for pair in pairs
        for name, rating in (("chosen", 4), ("rejected", 1))
    ]


@pytest.mark.parametrize("kind", ["pairwise", "regression"])
def test_head_is_trained_and_guides(script, kind, tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "data.jsonl", tmp_path / "out" / "head.safetensors"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines(kind)))
    arguments = ["train.py", "--data", str(data), "--out", str(out), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    whole, prefixes, _ = capsys.readouterr().out.splitlines()
    assert whole.startswith("held-out whole answers")
    assert prefixes.startswith("held-out prefixes")
    assert float(whole.split(":")[1].split()[0]) > 0.8  # the tiny data are easy to tell apart
    decoder = ArgsDecoder.from_pretrained(LM, Head(out), device="cpu")
    (pair, *_) = lines("pairwise")
    good, bad = (
        decoder.rewards([pair["prompt"]], [decoder.tokenizer(pair[name]).input_ids])[0]
        for name in ("chosen", "rejected")
    )
    assert good > bad
    (result,) = decoder.generate(pair["prompt"], DecodingConfig(k=4, w=1.0, max_new_tokens=4))
    assert len(result.rewards) == len(result.token_ids)


def test_lines_of_another_kind_are_refused(script, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(SystemExit, match="rating"):
        script.read(data)
