"""How the agreement of two pairs of models is counted, and a small run of the whole."""

import json
from importlib.util import find_spec

import pytest
from tiny_models import decoder, tokens

from args_fast import DecodingConfig
from args_fast.bench.quantization import agreement, main
from args_fast.ops import cpp

CONFIG = DecodingConfig(k=5, w=1.5, max_new_tokens=6, eos_token_ids=[])
PROMPTS = [tokens(9), tokens(4, seed=1), tokens(7, seed=2)]


def decoded(pair):
    return [result.token_ids for result in pair.generate(PROMPTS, CONFIG)]


def test_a_pair_agrees_with_itself():
    pair = decoder("llama", "opt")
    found = agreement(pair, PROMPTS, decoded(pair), CONFIG)
    assert found == {"forced": 1.0, "free_prefix": 1.0, "free_whole": 1.0, "places": 18}


def test_two_pairs_are_compared_token_by_token():
    pair, other = decoder("llama", "opt"), decoder("llama", "qwen2")
    texts, own = decoded(pair), decoded(other)
    assert texts != own
    found = agreement(other, PROMPTS, texts, CONFIG)

    forced = before = 0
    for prompt, text, free in zip(PROMPTS, texts, own, strict=True):
        for t, token in enumerate(text):
            (alone,) = other.generate([*prompt, *text[:t]], CONFIG)
            forced += alone.token_ids[0] == token
        before += next((t for t in range(6) if text[t] != free[t]), 6)
    whole = sum(text == free for text, free in zip(texts, own, strict=True))
    assert found["forced"] == forced / 18
    assert found["free_prefix"] == before / 18
    assert found["free_whole"] == whole / 3


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed")
def test_without_torchao_it_says_what_to_install(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cpu", "--kinds", "fp8"])
    assert "args-fast[quant]" in capsys.readouterr().err


@pytest.mark.skipif(
    cpp.status() != "built" and find_spec("torchao") is None, reason="neither C++ ops nor torchao"
)
def test_a_small_run_on_the_embedded_pair(tmp_path):
    main(["--device=cpu", "--kinds=int8", "--prompts=2", "--tokens=4", f"--results={tmp_path}"])
    (file,) = tmp_path.glob("*/quantization-*.json")
    plain, lm, rm, both = json.loads(file.read_text())["cases"]
    assert plain["forced"] == plain["free_prefix"] == plain["free_whole"] == 1.0
    assert lm["lm_bytes"] == both["lm_bytes"] < plain["lm_bytes"] == rm["lm_bytes"]
    assert rm["rm_bytes"] == both["rm_bytes"] < plain["rm_bytes"] == lm["rm_bytes"]
    assert "| int8 | int8 |" in file.with_suffix(".md").read_text()
