"""Judgements: strictly read, in a recorded order, resumed, and summed up with intervals."""

import json
import threading

import pytest
from chat_server import served
from statsmodels.stats.proportion import proportion_confint

from args_fast.errors import EvaluationError
from args_fast.eval.endpoint import Endpoint, EndpointError
from args_fast.eval.judge import CRITERIA, Pair, judge, judge_run, messages, orders, parse_scores
from args_fast.eval.pairs import pairs_of
from args_fast.eval.records import Records, write_json
from args_fast.eval.verdicts import summarize

PAIRS = [Pair(i, f"Question {i}?", f"good answer {i}", f"bad answer {i}") for i in range(8)]


def silent(part, done, total):
    pass


def asked(url, pairs, folder, *, both=False, seed=0, tries=3, concurrency=3, report=silent):
    endpoint = Endpoint(url, "judge", sleep=lambda seconds: None, tries=tries, timeout=5.0)
    with Records(folder / "verdicts.jsonl", ("index", "swapped")) as verdicts:
        judge(
            endpoint,
            list(orders(pairs, seed, both=both)),
            verdicts,
            seed=seed,
            parse_tries=tries,
            concurrency=concurrency,
            report=report,
        )
        return list(verdicts)


def prefer_good(body, number):
    """A judge that sees which answer is good, wherever it stands."""
    question = body["messages"][-1]["content"]
    first = question.partition("[Assistant 1's answer]\n")[2].partition("\n")[0]
    return "9 2\nBecause." if first.startswith("good") else "2 9\nBecause."


def prefer_first(body, number):
    return "8 6"


# ---- what a judge says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 6", (8, 6)),
        ("  8.5   7\nBecause it is 10 times better.", (8.5, 7)),
        ("10, 1", (10, 1)),
        ("7/9", (7, 9)),
        ("\n\n8 6\n", (8, 6)),
        ("8", None),
        ("8 6 7", None),
        ("0 6", None),
        ("8 11", None),
        ("-8 6", None),
        ("Scores: 8 6", None),
        ("Assistant 1 is better.\n8 6", None),
        ("eight six", None),
        ("86", None),
        ("8 6.", None),
        ("nan 6", None),
        ("", None),
    ],
)
def test_scores_are_the_first_line_and_nothing_else(reply, scores):
    assert parse_scores(reply) == scores


def test_a_judge_is_asked_by_the_papers_criteria():
    system, question = messages(PAIRS[0], swapped=False)
    for criterion in ("helpfulness", "harmlessness", "relevance", "accuracy", "insightfulness"):
        assert criterion in CRITERIA
        assert criterion in system["content"]
    text = question["content"]
    assert text.index("Question 0?") < text.index("good answer 0") < text.index("bad answer 0")
    swapped = messages(PAIRS[0], swapped=True)[1]["content"]
    assert swapped.index("bad answer 0") < swapped.index("good answer 0")


# ---- order ---------------------------------------------------------------------------------------


def test_the_order_is_drawn_by_the_seed_and_each_pair_alone():
    many = [Pair(i, "", "", "") for i in range(400)]
    drawn = {pair.index: swapped for pair, swapped in orders(many, 1, both=False)}
    assert 150 < sum(drawn.values()) < 250
    assert {p.index: s for p, s in orders(many[100:], 1, both=False)}.items() <= drawn.items()
    assert {p.index: s for p, s in orders(many, 2, both=False)} != drawn


def test_both_orders_are_asked_for_each_pair():
    found = [(pair.index, swapped) for pair, swapped in orders(PAIRS[:2], 0, both=True)]
    assert found == [(0, False), (0, True), (1, False), (1, True)]


@pytest.mark.parametrize("both", [False, True])
def test_scores_belong_to_the_method_wherever_it_stood(tmp_path, both):
    with served(prefer_good) as (url, _):
        records = asked(url, PAIRS, tmp_path, both=both)
    assert len(records) == len(PAIRS) * (1 + both)
    assert all((record["score"], record["other"]) == (9, 2) for record in records)
    assert {record["swapped"] for record in records} == {False, True}
    assert all(record["reply"].endswith("Because.") for record in records)


# ---- a judge that misbehaves ---------------------------------------------------------------------


def test_a_reply_without_scores_is_asked_for_again_with_another_seed(tmp_path):
    seen = []

    def mumble(body, number):
        seen.append(body["seed"])
        return "Both are fine." if body["seed"] < 2 else "8 6"

    with served(mumble) as (url, _):
        (record,) = asked(url, PAIRS[:1], tmp_path)
    assert seen == [0, 1, 2]
    assert record["requests"] == 3
    assert (record["prompt_tokens"], record["completion_tokens"]) == (300, 30)
    assert "error" not in record


def test_a_judge_that_never_gives_scores_is_recorded_and_asked_again_when_resumed(tmp_path):
    with served(lambda body, number: "Both are fine.") as (url, _):
        records = asked(url, PAIRS[:4], tmp_path)
    assert all(record["reply"] == "Both are fine." for record in records)
    assert all("no two scores" in record["error"] for record in records)
    assert summarize(records)["failed"] == 4
    with served(prefer_good) as (url, server):
        records = asked(url, PAIRS[:4], tmp_path)
    assert len(server.requests) == 4
    assert summarize(records)["win"]["count"] == 4


def test_a_refused_pair_does_not_stop_the_others(tmp_path):
    def refuse_one(body, number):
        return 400 if "Question 2?" in body["messages"][-1]["content"] else "8 6"

    with served(refuse_one) as (url, _):
        records = asked(url, PAIRS, tmp_path)
    failed = [record for record in records if "error" in record]
    assert [record["index"] for record in failed] == [2]
    assert "HTTP 400" in failed[0]["error"]


def test_an_endpoint_that_is_down_ends_the_job_and_keeps_what_there_is(tmp_path):
    says = r"3 judgements in a row got no answer: .*resumes"
    down = served(lambda body, number: "8 6" if number < 2 else 500)
    with down as (url, _), pytest.raises(EndpointError, match=says):
        asked(url, PAIRS, tmp_path, concurrency=1)
    with served(lambda body, number: "8 6") as (url, server):
        records = asked(url, PAIRS, tmp_path)
    assert len(server.requests) == len(PAIRS) - 2
    assert len(records) == len(PAIRS)


def test_no_more_requests_at_once_than_allowed(tmp_path):
    barrier = threading.Barrier(3, timeout=5)

    def meet(body, number):
        if number < 6:
            barrier.wait()  # three requests have to be under way together
        return "8 6"

    with served(meet) as (url, server):
        asked(url, PAIRS, tmp_path, concurrency=3)
    assert server.most_at_once == 3


def test_a_killed_job_resumes_with_what_is_missing(tmp_path):
    class Killed(BaseException):
        pass

    def kill(part, done, total):
        if done == 3:
            raise Killed

    with served(prefer_good) as (url, server):
        with pytest.raises(Killed):
            asked(url, PAIRS, tmp_path, concurrency=1, report=kill)
        records = asked(url, PAIRS, tmp_path, concurrency=1)
    assert len(records) == len(PAIRS)
    assert len(server.requests) <= len(PAIRS) + 1  # one may have been under way when it was killed


# ---- sums ----------------------------------------------------------------------------------------


def verdict(index, score, other, swapped=False):
    spent = {"requests": 1, "prompt_tokens": 1000, "completion_tokens": 100}
    return {"index": index, "swapped": swapped, "score": score, "other": other, **spent}


def test_shares_have_wilson_intervals():
    records = [verdict(i, 8, 6) for i in range(6)] + [verdict(6, 5, 5), verdict(7, 3, 9, True)]
    found = summarize(records, price=(10.0, 30.0))
    assert {name: found[name]["count"] for name in ("win", "tie", "lose", "win_or_tie")} == {
        "win": 6,
        "tie": 1,
        "lose": 1,
        "win_or_tie": 7,
    }
    low, high = proportion_confint(7, 8, method="wilson")
    assert (found["win_or_tie"]["low"], found["win_or_tie"]["high"]) == pytest.approx((low, high))
    assert found["win_or_tie"]["share"] == 7 / 8
    assert found["mean_score"] == (48 + 5 + 3) / 8
    assert found["agreement"] is None
    assert found["spent"] == {
        "requests": 8,
        "prompt_tokens": 8000,
        "completion_tokens": 800,
        "dollars": pytest.approx(0.08 + 0.024),
    }


def test_a_pair_in_both_orders_counts_once_by_its_sum():
    records = [
        *(verdict(0, 9, 5), verdict(0, 9, 5, True)),
        *(verdict(1, 9, 5), verdict(1, 6, 8, True)),
        *(verdict(2, 7, 5), verdict(2, 5, 7, True)),
    ]
    found = summarize(records)
    assert (found["pairs"], found["win"]["count"], found["tie"]["count"]) == (3, 2, 1)
    assert found["agreement"]["share"] == pytest.approx(1 / 3)


def test_a_judge_that_likes_the_first_place_shows(tmp_path):
    with served(prefer_first) as (url, _):
        found = summarize(asked(url, PAIRS, tmp_path, both=True))
    assert found["first_preferred"]["share"] == 1
    assert found["agreement"]["share"] == 0
    assert found["tie"]["count"] == len(PAIRS)


def test_nothing_judged_is_not_an_error():
    found = summarize([])
    assert found["win"] == {"count": 0, "share": None, "low": None, "high": None}
    assert found["mean_score"] is None


# ---- the folder of a run -------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    prompts = [{"id": str(i), "prompt": f"Question {i}?"} for i in range(3)]
    write_json(tmp_path / "prompts.json", {"skipped": 0, "prompts": prompts})
    with Records(tmp_path / "samples.jsonl", ("method", "index")) as records:
        for method in ("greedy", "args-greedy:w=1,k=10", "args-greedy:w=2,k=10", "top-k:k=40"):
            records.append(
                {"method": method, "index": i, "response": f"{method} {i}\n\nHuman: more"}
                for i in range(3)
                if (method, i) != ("greedy", 1)
            )
        records.append([{"method": "greedy", "index": 1, "error": "too long"}])
    return tmp_path


def test_pairs_are_of_prompts_that_both_answered_and_cut(run):
    own, other, pairs = pairs_of(run, None, None)
    assert (own, other) == ("args-greedy:w=1,k=10", "greedy")
    assert [pair.index for pair in pairs] == [0, 2]
    assert pairs[1] == Pair(2, "Question 2?", "args-greedy:w=1,k=10 2", "greedy 2")


@pytest.mark.parametrize(
    ("method", "other", "says"),
    [
        ("args", None, "name one of them, or a beginning that no other has"),
        ("nucleus", None, "the method is 'nucleus'; the run has greedy, args-greedy:w=1,k=10"),
        ("top", "top-k:k=40", "both methods are top-k:k=40"),
    ],
)
def test_a_method_that_the_run_has_not_is_named(run, method, other, says):
    with pytest.raises(EvaluationError, match=says):
        pairs_of(run, method, other)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="is not the folder of a run"):
        pairs_of(tmp_path, None, None)


def settings(**more):
    given = {"method": "args-greedy:w=2,k=10", "other": "greedy", "model": "a/b", "endpoint": "x"}
    return {**given, "seed": 0, "both_orders": False, **more}


def judged(run, url, count=None, **more):
    _, _, pairs = pairs_of(run, "args-greedy:w=2", None)
    endpoint = Endpoint(url, "a/b", timeout=5.0)
    return judge_run(
        endpoint,
        pairs[:count],
        run,
        settings(**more),
        parse_tries=2,
        concurrency=2,
        price=None,
        report=silent,
    )


def test_judge_run_keeps_judgements_and_sums_in_the_run(run):
    with served(prefer_first) as (url, server):
        found, file = judged(run, url, 1)
        assert (found["pairs"], len(server.requests)) == (1, 1)
        found, file = judged(run, url)
        assert (found["pairs"], len(server.requests)) == (2, 2)
    assert file.parent == run / "judge"
    assert json.loads(file.with_suffix(".json").read_text()) == found
    assert found["model"] == "a/b"


def test_judge_run_does_not_mix_judges(run):
    with served(prefer_first) as (url, _):
        judged(run, url)
        with pytest.raises(EvaluationError, match="endpoint = 'x', and now it is 'y'"):
            judged(run, url, endpoint="y")
