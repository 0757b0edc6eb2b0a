"""What is measured of a response, and what is left out and counted."""

import pytest
from eval_runs import Opener, a_plan, samples, silent
from naive_decoder import naive_tiny_decoder

from args_fast.errors import EvaluationError
from args_fast.eval import data
from args_fast.eval.judges import parse as judge
from args_fast.eval.run import evaluate

PROMPT = "\n\nHuman: Repeat after me: Human: hi\n\nAssistant:"


def written(folder, prompt=PROMPT):
    import json

    file = folder / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": prompt}))
    return file


class Scripted(Opener):
    """Decoders whose responses are a text of this test."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def __call__(self, lm, rm):
        decoder = super().__call__(lm, rm)
        plain = decoder._decode

        def scripted(prompt, config):
            from dataclasses import replace

            ids = decoder.tokenizer(self.text).input_ids
            return replace(plain(prompt, config), text=self.text, token_ids=ids)

        decoder._decode = scripted
        return decoder


@pytest.mark.parametrize(("kind", "kept"), [("hh", " Yes.\n\n"), ("shp", None), ("text", None)])
def test_hh_responses_are_cut_before_they_are_rewarded(tmp_path, kind, kept):
    text = " Yes.\n\nHuman: And then?"
    if kind == "shp":
        file = tmp_path / "a.jsonl"
        file.write_text('{"history": "Why?", "post_id": "1"}')
        prompt = " Human: Why? Assistant: "
    else:
        file, prompt = written(tmp_path), PROMPT
    plan = a_plan("greedy", data=f"{kind}:{file}", limit=None)
    found = evaluate(plan, tmp_path / "run", Scripted(text), silent)
    decoder = naive_tiny_decoder()
    ids = decoder.tokenizer(kept or text).input_ids
    expected = decoder.rewards([prompt], [ids])[0]
    assert found["methods"][0]["measures"]["reward"]["mean"] == pytest.approx(expected, abs=1e-5)


def test_texts_that_are_too_long_for_the_published_script_are_skipped(tmp_path, monkeypatch):
    short = data.Kind(None, "test", ("prompt",), False, cut=True, reward_below=36)
    monkeypatch.setitem(data.KINDS, "hh", short)
    found = evaluate(a_plan("greedy", limit=8), tmp_path, Opener(), silent)
    (method,) = found["methods"]
    reward, lengths = method["measures"]["reward"], []
    for sample in samples(tmp_path).values():
        lengths.append(len(sample["prompt_token_ids"]) + len(sample["token_ids"]))
    assert reward["skipped"] == sum(length >= 36 for length in lengths)
    assert 0 < reward["skipped"] < 8
    assert reward["count"] == 8 - reward["skipped"]
    assert method["measures"]["perplexity"]["skipped"] == 0


def test_a_text_that_a_reward_refuses_is_skipped_alone(tmp_path):
    opener = Opener()
    judged = Opener(longest=36)

    def open_pair(lm, rm):
        return (judged if rm == "org/short" else opener)(lm, rm)

    plan = a_plan("greedy", limit=8, judges=(judge("short=org/short"),))
    found = evaluate(plan, tmp_path, open_pair, silent)
    measures = found["methods"][0]["measures"]
    assert measures["reward"]["skipped"] == 0
    assert 0 < measures["judge:short"]["skipped"] < 8


def broken(prompts, responses):
    raise RuntimeError("out of order")


def short(prompts, responses):
    return [1.0]


def nothing(prompts, responses):
    return [float("nan")] * len(responses)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (f"{__file__}:broken", "the judge broken failed: RuntimeError: out of order"),
        (f"{__file__}:short", "the judge short gave 1 values for 3 responses"),
        (f"{__file__}:absent", "cannot be imported"),
        ("no_such_module:judge", "cannot be imported"),
        ("no/such/file.py:judge", "cannot be imported"),
    ],
)
def test_a_judge_that_fails_is_named(tmp_path, source, says):
    with pytest.raises(EvaluationError, match=says):
        evaluate(a_plan("greedy", judges=(judge(source),)), tmp_path, Opener(), silent)


def test_a_judge_that_has_no_value_is_counted(tmp_path):
    plan = a_plan("greedy", judges=(judge(f"{__file__}:nothing"),))
    found = evaluate(plan, tmp_path, Opener(), silent)
    value = found["methods"][0]["measures"]["judge:nothing"]
    assert (value["mean"], value["skipped"]) == (None, 3)


@pytest.mark.parametrize(
    ("written", "name", "source", "function"),
    [
        ("org/rm", "rm", "org/rm", False),
        ("gold=org/rm", "gold", "org/rm", False),
        ("lexicon.py:polite", "polite", "lexicon.py:polite", True),
        ("tone=package.module:polite", "tone", "package.module:polite", True),
    ],
)
def test_judges_are_models_or_functions(written, name, source, function):
    found = judge(written)
    assert (found.name, found.source, found.is_function) == (name, source, function)


def test_a_judge_without_a_source_is_refused():
    with pytest.raises(EvaluationError, match="names no reward model"):
        judge("gold=")
