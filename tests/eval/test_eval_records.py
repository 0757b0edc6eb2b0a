"""Records survive a kill, and a folder is never resumed with other settings."""

import json

import pytest

from args_fast.errors import EvaluationError
from args_fast.eval.records import Records, settle, write_json


def record(number, **more):
    return {"method": "greedy", "index": number, **more}


def opened(path):
    return Records(path, ("method", "index"))


def test_records_are_read_back(tmp_path):
    with opened(tmp_path / "a.jsonl") as records:
        records.append([record(0, response="ü\u2028"), record(1)])
    with opened(tmp_path / "a.jsonl") as records:
        assert list(records) == [record(0, response="ü\u2028"), record(1)]
        assert ("greedy", 1) in records
        assert records.get("greedy", 0)["response"] == "ü\u2028"
        assert records.get("greedy", 2) is None


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_cut_off_and_written_again(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    with opened(path) as records:
        records.append([record(0), record(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with opened(path) as records:
        assert list(records) == [record(0)]
        records.append([record(1)])
    assert path.read_bytes() == whole


def test_a_later_record_takes_the_place_of_an_earlier_one(tmp_path):
    with opened(tmp_path / "a.jsonl") as records:
        records.append([record(0, error="x")])
        records.append([record(0, score=1)])
    with opened(tmp_path / "a.jsonl") as records:
        assert list(records) == [record(0, score=1)]


@pytest.mark.parametrize("line", ["nonsense", "[1]", "{}", "null"])
def test_a_line_that_is_not_a_record_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(record(0))}\n{line}\n")
    with pytest.raises(EvaluationError, match=r"line 2 of .* is not a record of a run"):
        opened(path)


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with opened(path), pytest.raises(EvaluationError, match="another process is writing"):
        opened(path)
    opened(path).close()


def test_nan_is_not_written(tmp_path):
    with opened(tmp_path / "a.jsonl") as records, pytest.raises(ValueError, match="JSON"):
        records.append([record(0, value=float("nan"))])


def test_settle_remembers_and_compares(tmp_path):
    file = tmp_path / "settings.json"
    settle(file, {"lm": "a", "stop": ("x",), "limit": None})
    settle(file, {"lm": "a", "stop": ["x"], "limit": None})
    with pytest.raises(EvaluationError, match=r"holds a run with lm = 'a', and now it is 'b'"):
        settle(file, {"lm": "b", "stop": ("x",), "limit": None})
    with pytest.raises(EvaluationError, match="holds a run with more = None, and now it is 1"):
        settle(file, {"lm": "a", "stop": ("x",), "limit": None, "more": 1})


def test_write_json_replaces_the_file_whole(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("inf")})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]
