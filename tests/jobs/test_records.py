"""A record holds what was asked for, and its first bytes say which line it is of."""

import json
from dataclasses import replace

import pytest
from fake_decoder import answer

from args_fast import DecodingConfig
from args_fast.errors import LineError
from args_fast.generation import Candidate
from args_fast.jobs.records import Finished, Origin, finish, head

CONFIG = DecodingConfig(max_new_tokens=2)
ONE = answer([5, 6, 7], CONFIG)
STEP = (Candidate(3, -0.5, 1.25, 0.75), Candidate(9, -1.5, float("nan"), float("nan")))


def record(*samples, scores=False, **labels):
    finished = finish((Origin(4, labels), list(samples)), scores=scores)
    assert head(finished.record) == (4, False)
    return json.loads(finished.record), finished


def test_a_record_of_one_sample():
    content, finished = record(ONE, id="a")
    assert list(content) == ["line", "id", "text", "token_ids", "finish_reason", "prompt_tokens"]
    assert (content["token_ids"], content["prompt_tokens"]) == (ONE.token_ids, 3)
    assert (finished.tokens, finished.rewarded, finished.reward) == (2, 1, ONE.rewards[-1])


def test_a_record_of_several_samples():
    other = replace(answer([5, 6, 7], replace(CONFIG, seed=1)), rewards=[float("nan")] * 2)
    content, finished = record(ONE, other)
    assert list(content) == ["line", "samples"]
    alone = [record(each)[0] for each in (ONE, other)]
    assert [{"line": 4} | sample for sample in content["samples"]] == alone
    assert (finished.tokens, finished.rewarded, finished.reward) == (4, 1, ONE.rewards[-1])


@pytest.mark.parametrize("scores", [False, True])
def test_candidates_come_where_they_were_asked_for(scores):
    with_candidates = replace(ONE, candidates=[STEP, STEP])
    content, _ = record(with_candidates, scores=scores)
    assert content["candidates"][0] == [
        {"token_id": 3, "logprob": -0.5, "reward": 1.25, "score": 0.75},
        {"token_id": 9, "logprob": -1.5, "reward": None, "score": None},
    ]
    assert ("scores" in content) == scores
    assert "candidates" not in record(ONE, scores=scores)[0]


def test_an_error_record_begins_with_its_error():
    finished = finish((Origin(7, {"id": 1}), LineError("no")), scores=True)
    assert finished == Finished(finished.record, True, 0, 0, 0.0)
    assert head(finished.record) == (7, True)
    assert json.loads(finished.record) == {
        "line": 7,
        "error": {"type": "LineError", "message": "no"},
        "id": 1,
    }
