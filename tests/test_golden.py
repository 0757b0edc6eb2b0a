"""The published implementation's tokens (float32, no EOS stop), by the engine and by the oracle."""

import json
from pathlib import Path

import pytest

from args_fast import ArgsDecoder, DecodingConfig, reference

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
FAMILIES = sorted({case["family"] for case in CASES})


def load(fused):
    folders = {family: GOLDEN / family for family in FAMILIES}
    options = {"device": "cpu", "fused_layers": fused}
    return {
        family: ArgsDecoder.from_pretrained(folder / "lm", folder / "rm", **options)
        for family, folder in folders.items()
    }


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "modules"])
def decoders(request):
    return load(request.param)


@pytest.fixture(scope="module")
def models():
    """Which the oracle runs as they are."""
    return {name: (pair.language_model, pair.reward_model) for name, pair in load(False).items()}


def config(case, steps=None):
    steps = steps or len(case["continuation"])
    return DecodingConfig(k=case["k"], w=case["w"], max_new_tokens=steps, eos_token_ids=[])


def kind(case):
    return case["family"], case["k"], case["w"]


def test_there_are_48_cases():
    assert len(CASES) == 48


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['family']}-k{c['k']}-w{c['w']}")
def test_engine_gives_the_published_tokens(decoders, case):
    (result,) = decoders[case["family"]].generate(case["prompt"], config(case))
    assert result.token_ids == case["continuation"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['family']}-k{c['k']}-w{c['w']}")
def test_oracle_gives_the_published_tokens(models, case):
    """All of one prompt of each kind, and the beginning of the others: it reads every candidate's
    whole text. The engine's are compared to the end."""
    alike = [other for other in CASES if kind(other) == kind(case)]
    steps = len(case["continuation"]) if case is alike[0] else 12
    result = reference.decode(*models[case["family"]], case["prompt"], config(case, steps))
    assert result.token_ids == case["continuation"][:steps]


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_gives_the_published_tokens_in_batches(decoders, family):
    groups = {}
    for case in CASES:
        if case["family"] == family:
            key = (case["k"], case["w"], len(case["continuation"]))
            groups.setdefault(key, []).append(case)
    for cases in groups.values():
        prompts = [case["prompt"] for case in cases]
        results = decoders[family].generate(prompts, config(cases[0]))
        assert [r.token_ids for r in results] == [case["continuation"] for case in cases]
