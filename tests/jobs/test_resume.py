"""A job that was interrupted is resumed, one that is another's is not."""

import contextlib
import json
import os
import subprocess
from dataclasses import replace

import pytest
from fake_decoder import SETTINGS, FakeDecoder, run_job
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import examples

from args_fast import DecodingConfig
from args_fast.errors import JobError, NonFiniteError
from args_fast.jobs.job import decode_lines, opened
from args_fast.jobs.journal import Journal, LineSet
from args_fast.jobs.layouts import Reading
from args_fast.jobs.ownership import sidecar, survey
from args_fast.jobs.sources import Source

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
        records = decode_lines(FakeDecoder(), job.lines(), job.settings)
        for tally in job.write(records):
            assert output.read_bytes().count(b"\n") == tally.written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lm": "other"}, 'lm was "lm" and is "other"'),
        ({"rm": "other"}, "rm was"),
        ({"dtype": "bfloat16"}, "dtype was"),
        ({"reading": Reading(keep=True)}, "reading.keep was false and is true"),
        ({"reading": Reading(chat=True)}, "reading.chat was"),
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


# ---- trying errors again -------------------------------------------------------------------------


class Flaky(FakeDecoder):
    """Refuses the requests whose seed is among the bad ones."""

    def __init__(self, bad, **more):
        super().__init__(**more)
        self.bad = bad

    def complete(self, requests):
        seeds = []

        def watched():
            for prompt, config in requests:
                seeds.append(config.seed)
                yield prompt, config

        for index, result in super().complete(watched()):
            yield index, NonFiniteError("NaN") if seeds[index] in self.bad else result


BOTH = pytest.mark.parametrize("settings", [SETTINGS, UNORDERED], ids=["ordered", "unordered"])


def same(output, whole, settings):
    """Whether two outputs hold the same records, in the same order where that is asked for."""
    found, wanted = output.read_bytes().splitlines(), whole.splitlines()
    return found == wanted if settings.ordered else sorted(found) == sorted(wanted)


@BOTH
@settings(max_examples=examples(20))
@given(bad=st.sets(st.integers(1, LINES)), still=st.sets(st.integers(1, LINES)), seed=st.integers())
def test_errors_are_tried_again_until_there_are_none(source, whole, settings, bad, still, seed):
    output = source.with_name("retried.jsonl")
    output.unlink(missing_ok=True)
    run_job(source, output, settings, Flaky(bad, seed=seed))
    lines = [json.loads(line)["line"] for line in output.read_bytes().splitlines()]
    failed = {json.loads(x)["line"] for x in output.read_bytes().splitlines() if b'"error"' in x}
    assert run_job(source, output, settings) == 0  # not unless it is asked for
    written = run_job(source, output, settings, Flaky(still, seed=seed), retry_errors=True)
    assert written == len(failed)
    assert [json.loads(line)["line"] for line in output.read_bytes().splitlines()] == lines
    for _ in range(2):
        run_job(source, output, settings, FakeDecoder(seed=seed), retry_errors=True)
        assert same(output, whole, settings)


@BOTH
@settings(max_examples=examples(30))
@given(at=st.integers(0, 30), seed=st.integers(0, 9), after=st.booleans())
def test_a_retry_that_is_killed_is_resumed(source, whole, settings, at, seed, after):
    output = source.with_name("killed.jsonl")
    output.unlink(missing_ok=True)
    every = set(range(1, LINES + 1))
    run_job(source, output, settings, Flaky(every - {2, 7}, seed=seed))
    if after:  # some lines have no record at all yet
        whole_lines = output.read_bytes().splitlines(keepends=True)
        output.write_bytes(b"".join(whole_lines[:8]))
    written = 0
    with (
        contextlib.suppress(RuntimeError),
        opened(str(source), str(output), settings, retry_errors=True) as job,
    ):
        records = decode_lines(FakeDecoder(seed=seed), job.lines(), job.settings)
        for tally in job.write(records):
            written = tally.written
            if written >= at:
                raise RuntimeError("killed")
    again = run_job(source, output, settings, FakeDecoder(seed=seed), retry_errors=True)
    assert same(output, whole, settings)
    errors = whole.count(b'"error"')
    assert again <= LINES - written + errors
    assert not output.with_name(output.name + ".new").exists()


@BOTH
def test_without_a_retry_a_killed_one_is_put_in_order_too(source, whole, tmp_path, settings):
    output = tmp_path / "out.jsonl"
    run_job(source, output, settings, Flaky({4}))
    with (
        contextlib.suppress(RuntimeError),
        opened(str(source), str(output), settings, retry_errors=True) as job,
    ):
        for _ in job.write(decode_lines(FakeDecoder(), job.lines(), job.settings)):
            pass
        raise RuntimeError("killed before it was settled")
    assert len(output.read_bytes().splitlines()) > whole.count(b"\n")
    assert run_job(source, output, settings) == 0
    assert same(output, whole, settings)


def test_a_settled_output_keeps_its_mode_and_its_name(source, tmp_path):
    output = tmp_path / "out.jsonl"
    (tmp_path / "elsewhere").mkdir()
    output.symlink_to(tmp_path / "elsewhere" / "real.jsonl")
    run_job(source, output, SETTINGS, Flaky({4}))
    output.chmod(0o640)
    run_job(source, output, retry_errors=True)
    assert output.is_symlink()
    assert output.stat().st_mode & 0o777 == 0o640


def test_an_output_that_was_replaced_while_it_was_opened_is_in_use(tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"

    def replaced(*arguments):
        output.unlink()
        output.touch()

    monkeypatch.setattr("args_fast.jobs.journal.fcntl.flock", replaced)
    with pytest.raises(JobError, match="another process"):
        Journal(output, ordered=True)


# ---- jobs of earlier versions --------------------------------------------------------------------


def earlier(output, **settings):
    """Make the file next to an output say what version 0.1.0 wrote."""
    note = sidecar(output)
    job = json.loads(note.read_text())
    del job["reading"], job["defaults"]["return_candidates"]
    note.write_text(json.dumps(job | settings))


def test_a_job_of_an_earlier_version_that_wrapped_nothing_is_resumed(source, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    uninterrupted(source, output)
    earlier(output, raw=True)
    os.truncate(output, 300)
    run_job(source, output)
    assert output.read_bytes() == whole


def test_a_job_of_an_earlier_version_that_wrapped_prompts_is_refused_by_name(source, tmp_path):
    output = tmp_path / "out.jsonl"
    before = uninterrupted(source, output)
    earlier(output, raw=False)
    with pytest.raises(JobError, match="earlier version") as error:
        run_job(source, output)
    assert "--chat" in str(error.value)
    assert output.read_bytes() == before


def test_an_empty_output_belongs_to_any_job(source, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    uninterrupted(source, output, replace(SETTINGS, lm="other"))
    os.truncate(output, 0)
    run_job(source, output)
    assert output.read_bytes() == whole


def test_a_damaged_record_with_others_after_it_is_an_error(source, tmp_path):
    output = tmp_path / "out.jsonl"
    before = uninterrupted(source, output).splitlines(keepends=True)
    damaged = b"".join([before[0], b'{"lin' + before[1], *before[2:]])
    output.write_bytes(damaged)
    with pytest.raises(JobError, match=r"line 2 of .* is not a record"):
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


def test_the_input_is_not_an_output(source):
    before = source.read_bytes()
    with pytest.raises(JobError, match="is the input too"):
        run_job(source, source, restart=True)
    assert source.read_bytes() == before


def test_a_named_pipe_is_read_once_and_not_resumed(source, whole, tmp_path):
    pipe, output = tmp_path / "pipe", tmp_path / "out.jsonl"
    uninterrupted(source, output)
    os.mkfifo(pipe)
    for restart in (False, True):
        # A program of its own: a fork of this one, with its threads, may never come to its end.
        writer = subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', source, pipe])
        if restart:
            assert run_job(pipe, output, restart=True) == whole.count(b"\n")
        else:
            with pytest.raises(JobError, match="piped in cannot be resumed"):
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
    known = survey(path, Source(Reading(), True, "", iter))
    assert known.lines == sum(1 for line in content if line.strip())
    assert known.bytes == path.stat().st_size
