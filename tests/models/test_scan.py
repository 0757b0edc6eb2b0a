"""Every architecture is right or refused: a sample of the scan that docs/models.md publishes.

ARGS_FAST_LONG=1 judges all of them, at all lengths; python tests/helpers/scan.py is the same as a
program.
"""

import json
import os

import architectures
import pytest
import scan
import transformers

LONG = os.environ.get("ARGS_FAST_LONG") == "1"
DATA = json.loads(scan.FILE.read_text())
SAME = DATA["transformers"] == transformers.__version__
KNOWN = {kind: set(architectures.names(kind)) for kind in architectures.KINDS}
BUILT = {
    kind: [n for n, (verdict, _) in DATA[kind].items() if verdict != "not built" and n in known]
    for kind, known in KNOWN.items()
}
# A variant is there because of something; of the others some are enough.
SAMPLE = [
    (kind, name)
    for kind, names in BUILT.items()
    for i, name in enumerate(names)
    if LONG or "+" in name or i % 5 == 0
]


@pytest.mark.parametrize(("kind", "name"), SAMPLE)
def test_an_architecture_is_right_or_refused(kind, name):
    if LONG:
        verdicts = [scan.judge(kind, name, n, unset=unset) for n, unset in scan.LENGTHS]
    else:
        verdicts = [scan.judge(kind, name, 110, prompts=(150, 19), steps=2)]
    for verdict, reason in verdicts:
        assert verdict in ("right", "refused", "not built"), reason
    expected, _ = DATA[kind][name]
    if SAME and expected == "refused":
        assert "right" not in {verdict for verdict, _ in verdicts}  # else the list is out of date
    elif SAME:
        assert "right" in {verdict for verdict, _ in verdicts}


def test_none_is_wrong():
    verdicts = {verdict for kind in architectures.KINDS for verdict, _ in DATA[kind].values()}
    assert verdicts == {"right", "refused", "not built"}


def test_what_is_right_stays_right():
    def right(kind):
        return {name for name, (verdict, _) in DATA[kind].items() if verdict == "right"}

    assert len([name for name in right("causal") if "+" not in name]) >= 84
    assert len([name for name in right("classification") if "+" not in name]) >= 36


@pytest.mark.skipif(not SAME, reason=f"the scan is of transformers {DATA['transformers']}")
def test_no_architecture_is_left_out():
    for kind in architectures.KINDS:
        assert list(DATA[kind]) == architectures.names(kind)


def test_the_page_is_what_the_data_says():
    assert scan.PAGE.read_text() == scan.page(DATA)


# ---- the scan would notice -----------------------------------------------------------------------


def test_a_wrong_number_is_noticed(monkeypatch):
    oracle_reward = scan.oracle.reward
    monkeypatch.setattr(scan.oracle, "reward", lambda rm, ids: oracle_reward(rm, ids) + 0.1)
    verdict, reason = scan.judge("causal", "llama", 110, prompts=(9,), steps=2)
    assert verdict == "wrong"
    assert "off by" in reason


def test_an_error_that_is_not_ours_is_noticed(monkeypatch):
    monkeypatch.setattr(scan, "ArgsDecoder", lambda lm, rm: {}["llama"])
    assert scan.judge("causal", "llama", 110) == ("traceback", "KeyError: 'llama'")
