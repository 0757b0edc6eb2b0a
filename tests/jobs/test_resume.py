"""A job that was interrupted goes on, one that is another's does not."""

import json
import os
import subprocess
from dataclasses import replace

import pytest
from fake_decoder import SETTINGS, FakeDecoder, encode, run_job
from hypothesis import given
from hypothesis import strategies as st

from args_fast import DecodingConfig
from args_fast.errors import JobError
from args_fast.jobs.job import decode_lines, opened
from args_fast.jobs.journal import Journal, LineSet
from args_fast.jobs.ownership import sidecar, survey

LINES = 14
UNORDERED = replace(SETTINGS, ordered=False)


def write_input(path, lines=LINES):
    """Good lines, two bad ones, and blank ones between."""
    with open(path, "w") as file:
        for i in range(1, lines + 1):
            if i % 6 == 3:
                file.write("bad\n" if i % 4 else "\n")
            else:
                file.write(json.dumps({"prompt": f"p{i}", "id": f"ü{i}", "seed": i}) + "\n")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_input(tmp_path_factory.mktemp("job") / "in.jsonl")


def uninterrupted(source, output, settings=SETTINGS):
    output.unlink(missing_ok=True)
    run_job(source, output, settings)
    return output.read_bytes()


@pytest.fixture(scope="module")
def whole(source):
    return uninterrupted(source, source.with_name("whole.jsonl"))


def test_every_line_that_is_not_blank_has_one_record_in_order(source, whole):
    records = [json.loads(line) for line in whole.splitlines()]
    numbers = [i for i, line in enumerate(source.read_text().splitlines(), 1) if line]
    assert [record["line"] for record in records] == numbers
    for record in records:
        if "error" in record:
            assert record["line"] % 6 == 3
            assert record["error"]["type"] == "LineError"
        else:
            assert record["id"] == f"ü{record['line']}"
            assert len(record["token_ids"]) == 5
            assert record["finish_reason"] == "length"


def test_scores_come_where_asked_for(source, tmp_path):
    output = tmp_path / "out.jsonl"
    run_job(source, output, replace(SETTINGS, scores=True))
    record = json.loads(output.read_bytes().splitlines()[0])
    assert record["scores"] == [token / 7 for token in record["token_ids"]]


@given(
    at=st.floats(0, 1),
    tail=st.sampled_from([b"", b"\0\0\0", b'{"line": 3']),
    seed=st.integers(0, 9),
)
def test_an_output_torn_at_any_byte_becomes_the_same_bytes(source, whole, at, tail, seed):
    output = source.with_name("torn.jsonl")
    kept = whole[: round(at * len(whole))]
    if kept.endswith(b"\n") or tail.startswith(b"\0") or not kept:
        kept += tail
    output.write_bytes(kept)
    sidecar(output).write_bytes(sidecar(source.with_name("whole.jsonl")).read_bytes())
    written = run_job(source, output, decoder=FakeDecoder(seed=seed))
    assert output.read_bytes() == whole
    assert written == whole.count(b"\n") - kept.count(b"\n")


@given(at=st.floats(0, 1), seed=st.integers(0, 9))
def test_unordered_every_line_that_was_whole_is_kept_and_the_rest_comes_once(
    source, whole, at, seed
):
    output = source.with_name("unordered.jsonl")
    before = uninterrupted(source, output, UNORDERED)
    cut = round(at * len(before))
    os.truncate(output, cut)
    run_job(source, output, UNORDERED, FakeDecoder(seed=seed))
    after = output.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n", 0, cut) + 1])
    assert sorted(after.splitlines()) == sorted(whole.splitlines())


def test_a_finished_job_has_nothing_to_do(source, whole):
    assert run_job(source, source.with_name("whole.jsonl")) == 0
    assert source.with_name("whole.jsonl").read_bytes() == whole


def test_each_record_is_in_the_file_when_the_next_is_awaited(source, tmp_path):
    output = tmp_path / "out.jsonl"
    with opened(str(source), str(output), SETTINGS) as job:
        records = decode_lines(FakeDecoder(), job.lines(), SETTINGS, encode)
        for tally in job.write(records):
            assert output.read_bytes().count(b"\n") == tally.written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lm": "other"}, 'lm was "lm" and is "other"'),
        ({"rm": "other"}, "rm was"),
        ({"dtype": "bfloat16"}, "dtype was"),
        ({"raw": True}, "raw was false and is true"),
        ({"ordered": False}, "ordered was"),
        ({"scores": True}, "scores was"),
        ({"defaults": DecodingConfig(k=3, max_new_tokens=5)}, "defaults.k was 10 and is 3"),
    ],
)
def test_an_output_of_another_job_is_left_alone(source, tmp_path, change, words):
    output = tmp_path / "out.jsonl"
    before = uninterrupted(source, output)
    with pytest.raises(JobError, match="belongs to another job") as error:
        run_job(source, output, replace(SETTINGS, **change))
    assert words in str(error.value)
    assert "--restart" in str(error.value)
    assert output.read_bytes() == before


def test_an_input_that_changed_is_another_job(tmp_path):
    source, output = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    before = uninterrupted(source, output)
    source.write_bytes(source.read_bytes().replace(b"p2", b"q2"))
    with pytest.raises(JobError, match=r"input\.sha256"):
        run_job(source, output)
    assert output.read_bytes() == before


def test_an_input_that_moved_is_the_same_job(tmp_path):
    source, output = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    before = uninterrupted(source, output)
    os.truncate(output, 100)
    run_job(source.rename(tmp_path / "moved.jsonl"), output)
    assert output.read_bytes() == before


def test_restart_throws_away_what_another_job_wrote(source, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    uninterrupted(source, output, replace(SETTINGS, lm="other"))
    assert run_job(source, output, restart=True) == whole.count(b"\n")
    assert output.read_bytes() == whole
    os.truncate(output, 200)
    run_job(source, output)
    assert output.read_bytes() == whole


def test_a_file_that_no_job_wrote_is_left_alone(source, tmp_path):
    output = tmp_path / "thesis.txt"
    output.write_text("three years of work")
    with pytest.raises(JobError, match=r"no thesis\.txt\.job\.json"):
        run_job(source, output)
    assert output.read_text() == "three years of work"


def test_a_sidecar_that_says_nothing_is_an_error(source, tmp_path):
    output = tmp_path / "out.jsonl"
    uninterrupted(source, output)
    for text in ("", "[]"):
        sidecar(output).write_text(text)
        with pytest.raises(JobError, match="does not say which job"):
            run_job(source, output)


def test_an_empty_output_belongs_to_anybody(source, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    uninterrupted(source, output, replace(SETTINGS, lm="other"))
    os.truncate(output, 0)
    run_job(source, output)
    assert output.read_bytes() == whole


def test_a_damaged_record_with_others_behind_it_is_an_error(source, tmp_path):
    output = tmp_path / "out.jsonl"
    before = uninterrupted(source, output).splitlines(keepends=True)
    damaged = b"".join([before[0], b'{"lin' + before[1], *before[2:]])
    output.write_bytes(damaged)
    with pytest.raises(JobError, match=r"line 2 of .* is no record"):
        run_job(source, output)
    assert output.read_bytes() == damaged


@pytest.mark.parametrize("settings", [SETTINGS, UNORDERED], ids=["ordered", "unordered"])
def test_a_record_that_stands_twice_is_an_error(source, tmp_path, settings):
    output = tmp_path / "out.jsonl"
    before = uninterrupted(source, output, settings)
    output.write_bytes(before + before.splitlines(keepends=True)[0])
    with pytest.raises(JobError, match="twice, or not in its place"):
        run_job(source, output, settings)


def test_an_ordered_output_with_a_record_missing_is_an_error(source, tmp_path):
    output = tmp_path / "out.jsonl"
    before = uninterrupted(source, output).splitlines(keepends=True)
    output.write_bytes(b"".join(before[:2] + before[3:]))
    with pytest.raises(JobError, match="not in its place"):
        run_job(source, output)


def test_two_processes_do_not_write_to_one_output(source, tmp_path):
    output = tmp_path / "out.jsonl"
    with (
        opened(str(source), str(output), SETTINGS),
        pytest.raises(JobError, match="another process"),
    ):
        run_job(source, output)
    run_job(source, output)


def test_the_input_is_no_output(source):
    before = source.read_bytes()
    with pytest.raises(JobError, match="is the input too"):
        run_job(source, source, restart=True)
    assert source.read_bytes() == before


def test_a_named_pipe_is_read_once_and_not_gone_on_with(source, whole, tmp_path):
    pipe, output = tmp_path / "pipe", tmp_path / "out.jsonl"
    uninterrupted(source, output)
    os.mkfifo(pipe)
    for restart in (False, True):
        # A program of its own: a fork of this one, with its threads, may never come to its end.
        writer = subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', source, pipe])
        if restart:
            assert run_job(pipe, output, restart=True) == whole.count(b"\n")
        else:
            with pytest.raises(JobError, match="piped in cannot be gone on with"):
                run_job(pipe, output)
        writer.wait(30)
    assert output.read_bytes() == whole
    os.truncate(output, 50)  # not the job any more that the sidecar told of
    with pytest.raises(JobError, match=r"no out.jsonl.job.json"):
        run_job(source, output)


def test_errors_of_earlier_runs_count(source, tmp_path):
    output = tmp_path / "out.jsonl"
    before = uninterrupted(source, output)
    journal = Journal(output, ordered=True)
    assert journal.recover() == 0
    journal.close()
    assert journal.errors == before.count(b'"error"') > 0
    assert len(journal.done) == before.count(b"\n")


@given(st.sets(st.integers(1, 5000)))
def test_a_line_set_is_a_set(lines):
    found = LineSet()
    for line in [*lines, *lines]:
        found.add(line)
    assert len(found) == len(lines)
    assert {line for line in range(6000) if line in found} == lines


@given(st.lists(st.sampled_from([b"a", b"", b" ", b"bc"])), st.booleans())
def test_a_survey_counts_the_lines_that_are_not_blank(tmp_path_factory, content, ended):
    path = tmp_path_factory.getbasetemp() / "survey"
    path.write_bytes(b"\n".join(content) + (b"\n" if ended else b""))
    known = survey(path)
    assert known.lines == sum(1 for line in content if line.strip())
    assert known.bytes == path.stat().st_size
