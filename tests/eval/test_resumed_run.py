"""A run: decoded, measured and summed up, and resumed wherever it was killed."""

import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
from eval_runs import Killed, Opener, a_plan, samples, silent
from naive_decoder import naive_tiny_decoder

from args_fast.errors import EvaluationError
from args_fast.eval import diversity, published_diversity
from args_fast.eval.judges import Judge
from args_fast.eval.judges import parse as judge
from args_fast.eval.methods import parse
from args_fast.eval.results import compression_ratio
from args_fast.eval.run import clear, evaluate
from args_fast.tiny_pair import LM, RM

LENGTH = f"{__file__}:length"
METHODS = ("greedy", "top-k:k=5", "args-greedy:w=1")


def length(prompts, responses):
    """A judge of this test's own: how long a response is."""
    assert len(prompts) == len(responses)
    return [len(response) for response in responses]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted: its folder, plan and results."""
    folder = tmp_path_factory.mktemp("whole")
    plan = a_plan(judges=(judge(LENGTH),))
    return folder, plan, evaluate(plan, folder, Opener(), silent)


def test_results_hold_every_measure_of_every_method(whole):
    folder, plan, results = whole
    assert [method["method"] for method in results["methods"]] == [m.key for m in plan.methods]
    assert results["baseline"] == "greedy"
    decoder = naive_tiny_decoder()
    for method in results["methods"]:
        own = [samples(folder)[method["method"], index] for index in range(3)]
        measured = {name: value["mean"] for name, value in method["measures"].items()}
        responses = [sample["response"] for sample in own]
        rewards = decoder.rewards([s["prompt"] for s in own], [s["token_ids"] for s in own])
        texts = [sample["prompt_token_ids"] + sample["token_ids"] for sample in own]
        surprises = [
            -fmean(logprobs[-len(sample["token_ids"]) :])
            for logprobs, sample in zip(decoder.score(texts), own, strict=True)
        ]
        assert measured == {
            "reward": pytest.approx(fmean(rewards), abs=1e-5),
            "judge:length": pytest.approx(fmean(map(len, responses))),
            "diversity": pytest.approx(fmean(map(diversity, responses))),
            "published_diversity": pytest.approx(fmean(map(published_diversity, responses))),
            "perplexity": pytest.approx(math.exp(fmean(surprises)), rel=1e-5),
            "tokens": fmean(len(sample["token_ids"]) for sample in own),
            "ended": fmean(sample["finish_reason"] != "length" for sample in own),
        }
        assert method["compression_ratio"] == compression_ratio(responses)
        assert method["answered"] == 3


def test_gains_are_against_greedy(whole):
    _, _, results = whole
    greedy, _, guided = (method["measures"]["reward"] for method in results["methods"])
    assert guided["gain"]["mean"] == pytest.approx(guided["mean"] - greedy["mean"])
    assert greedy["gain"] == {"mean": 0, "low": 0, "high": 0, "count": 3}
    assert guided["mean"] > greedy["mean"]


def test_results_say_what_they_were_made_with(whole):
    folder, _, results = whole
    assert json.loads((folder / "results.json").read_text()) == results
    made = results["environment"]
    assert {"args-fast", "torch", "transformers", "python"} <= set(made["versions"])
    assert set(made["hashes"]) == {"lm", "rm", "samples.jsonl"}
    assert all(value.startswith("sha256:") for value in made["hashes"].values())
    assert results["settings"]["max_new_tokens"] == 8
    assert "words" in results["words"]
    assert results["judges"] == {"length": "eval/test_resumed_run.py:length"}
    assert results["settings"]["lm"] == "tiny_pair/lm"
    assert results["settings"]["data"] == "hh:tiny_pair/heldout.jsonl"
    assert str(LM.parent) not in json.dumps(results)


def same_but_for_the_order(results):
    hashes = {**results["environment"]["hashes"], "samples.jsonl": None}
    return {**results, "environment": {**results["environment"], "hashes": hashes}}


@pytest.mark.parametrize("kill_at", [0, 2, 7, 11])
def test_a_killed_run_is_resumed_and_gives_the_same(tmp_path, whole, kill_at):
    _, plan, results = whole
    reports = 0

    def kill(part, done, total):
        nonlocal reports
        if reports == kill_at:
            raise Killed
        reports += 1

    with pytest.raises(Killed):
        evaluate(plan, tmp_path, Opener(), kill)
    before = len(samples(tmp_path))
    opener = Opener()
    resumed = evaluate(plan, tmp_path, opener, silent)
    assert opener.decoded == 9 - before
    assert same_but_for_the_order(resumed) == same_but_for_the_order(results)


def test_a_finished_run_loads_nothing(whole):
    folder, plan, results = whole
    opener = Opener()
    assert evaluate(plan, folder, opener, silent) == results
    assert opener.opened == []


def test_a_method_and_a_judge_that_are_added_cost_only_themselves(tmp_path, whole):
    plan = a_plan("greedy")
    evaluate(plan, tmp_path, Opener(), silent)
    opener = Opener()
    wider = a_plan(*METHODS, judges=(judge(LENGTH),))
    resumed = evaluate(wider, tmp_path, opener, silent)
    assert opener.decoded == 6
    assert same_but_for_the_order(resumed) == same_but_for_the_order(whole[2])


def test_a_judge_with_another_source_is_measured_again(tmp_path, whole):
    folder, plan, results = whole
    other = replace(plan, judges=(Judge("length", f"{__file__}:half"),))
    found = evaluate(other, folder, Opener(), silent)
    for one, half in zip(results["methods"], found["methods"], strict=True):
        pair = (m["measures"]["judge:length"]["mean"] for m in (one, half))
        assert next(pair) == pytest.approx(2 * next(pair))


def half(prompts, responses):
    return [len(response) / 2 for response in responses]


def test_a_judge_model_has_a_decoder_of_its_own(tmp_path):
    opener = Opener()
    found = evaluate(a_plan("greedy", judges=(judge("gold=org/gold"),)), tmp_path, opener, silent)
    assert opener.opened == [(str(LM), str(RM)), (str(LM), "org/gold")]
    (method,) = found["methods"]
    assert method["measures"]["judge:gold"]["mean"] == method["measures"]["reward"]["mean"]


def test_a_policy_decodes_by_its_own_language_model(tmp_path):
    opener = Opener()
    plan = a_plan("greedy", f"policy:path={LM}/../lm,name=PPO")
    found = evaluate(plan, tmp_path, opener, silent)
    assert [lm for lm, _ in opener.opened] == [str(LM), f"{LM}/../lm", str(LM)]
    greedy, policy = found["methods"]
    assert policy["label"] == "PPO"
    assert policy["measures"]["reward"]["mean"] == greedy["measures"]["reward"]["mean"]


def test_other_settings_are_refused_until_the_run_is_cleared(tmp_path):
    plan = a_plan("greedy")
    evaluate(plan, tmp_path, Opener(), silent)
    (tmp_path / "mine.txt").write_text("mine")
    other = replace(plan, settings=replace(plan.settings, max_new_tokens=5))
    with pytest.raises(EvaluationError, match=r"max_new_tokens = 8, and now it is 5"):
        evaluate(other, tmp_path, Opener(), silent)
    clear(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    evaluate(other, tmp_path, Opener(), silent)


def test_prompts_that_are_too_long_are_counted(tmp_path):
    plan = a_plan("greedy", max_prompt_tokens=24)
    found = evaluate(plan, tmp_path, Opener(), silent)
    assert found["prompts"]["count"] == 3
    assert found["prompts"]["too_long"] > 0
    with pytest.raises(EvaluationError, match="prompts are longer than 2 tokens"):
        evaluate(a_plan("greedy", max_prompt_tokens=2), tmp_path / "none", Opener(), silent)


def test_prompts_that_cannot_be_decoded_are_counted(tmp_path):
    found = evaluate(a_plan("greedy", limit=6), tmp_path, Opener(longest=38), silent)
    (method,) = found["methods"]
    assert 0 < method["errors"] < 6
    assert method["answered"] == 6 - method["errors"] == method["measures"]["reward"]["count"]


def test_conversations_need_a_template(tmp_path):
    found = evaluate(a_plan("greedy", chat=True, limit=1), tmp_path, Opener(), silent)
    assert found["methods"][0]["answered"] == 1
    prompts = json.loads((tmp_path / "prompts.json").read_text())["prompts"]
    assert prompts[0]["prompt"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"methods": ()}, "no method to evaluate"),
        ({"methods": (parse("greedy"), parse("greedy"))}, "the method greedy is named twice"),
        ({"judges": (judge("a=b"), judge("a=c"))}, "the judge a is named twice"),
    ],
)
def test_a_plan_says_what_is_wrong(more, says):
    with pytest.raises(EvaluationError, match=says):
        replace(a_plan("greedy"), **more)
