"""A file is recognised before any model is loaded, or refused in one sentence."""

import codecs
import gzip
import io
import json
import sys
from types import SimpleNamespace

import pytest

from args_fast.errors import JobError, LineError
from args_fast.jobs import sources as subject
from args_fast.jobs.layouts import Reading
from args_fast.jobs.sources import opened

TWO = [{"prompt": "Hi", "id": 1}, {"prompt": "A walk?", "id": 2}]
LINES = "".join(json.dumps(each) + "\n" for each in TWO)
HH = json.dumps({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello"}) + "\n"


def read(path, content=None, **reading):
    """(format, numbered items) of a file, the items of lines as text."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with opened(str(path), Reading(**{"format": "auto"} | reading)) as source:
        items = [
            (number, item.decode() if isinstance(item, bytes) else item)
            for number, item in source.items()
        ]
    return source.reading.format, items


def refused(path, content, **reading):
    with pytest.raises(JobError) as error:
        read(path, content, **reading)
    assert path.name in str(error.value)
    return str(error.value)


def numbered(lines, first=1):
    return list(enumerate(lines.splitlines(keepends=True), first))


# ---- kinds of files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in", "in.txt", "in.jsonl.gz"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_lines_are_found_whatever_the_name(tmp_path, name, packed):
    content = LINES.encode()
    content = gzip.compress(content) if packed else content
    assert read(tmp_path / name, content) == ("jsonl", numbered(LINES))


def test_only_a_file_of_lines_as_they_are_can_be_read_from_the_middle(tmp_path):
    for name, content, is_plain in [
        ("a.jsonl", LINES.encode(), True),
        ("a.txt", b"Hi\n", True),
        ("a.gz", gzip.compress(LINES.encode()), False),
        ("a.json", json.dumps(TWO).encode(), False),
        ("a.csv", b"prompt\nHi\n", False),
    ]:
        (tmp_path / name).write_bytes(content)
        with opened(str(tmp_path / name), Reading("auto")) as source:
            assert source.is_plain == is_plain


def test_lines_before_the_first_good_one_are_still_read(tmp_path):
    content = "nonsense\n\n{}\n" + HH
    format, items = read(tmp_path / "in.jsonl", content)
    assert format == "hh"
    assert items == [(1, "nonsense\n"), (3, "{}\n"), (4, HH)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_element_by_element(tmp_path, indent):
    content = json.dumps([*TWO, "text", 5], indent=indent)
    format, items = read(tmp_path / "in.json", content)
    assert (format, items) == ("jsonl", list(enumerate([*TWO, "text", 5], 1)))


def test_an_array_may_be_of_texts_or_of_another_layout(tmp_path):
    assert read(tmp_path / "a.json", '["Hi", "You"]')[0] == "jsonl"
    assert read(tmp_path / "b.json", '[{"instruction": "Hi"}]')[0] == "alpacaeval"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.csv", 'id,prompt\n1,"Hi, ""you""\nthere"\n\n2,Bye\n'),
        ("in.csv", 'id;prompt\n1;"Hi, ""you""\nthere"\n2;Bye\n'),
        ("in.tsv", 'id\tprompt\n1\t"Hi, ""you""\nthere"\n2\tBye\n'),
        ("in.csv.gz", 'id,prompt\n1,"Hi, ""you""\nthere"\n2,Bye\n'),
        ("in.csv", '\ufeffid,prompt\r\n1,"Hi, ""you""\nthere"\r\n2,Bye\r\n'),
    ],
)
def test_a_table_is_read_row_by_row(tmp_path, name, content):
    rows = [(1, {"id": "1", "prompt": 'Hi, "you"\nthere'}), (2, {"id": "2", "prompt": "Bye"})]
    packed = gzip.compress(content.encode()) if name.endswith("gz") else content
    assert read(tmp_path / name, packed) == ("csv", rows)


def test_cells_of_options_are_json_and_empty_cells_are_not_there(tmp_path):
    content = 'prompt,k,stop,note\nHi,3,"[""."", ""!""]",5\nBye,,.,\n'
    _, items = read(tmp_path / "in.csv", content)
    assert items == [
        (1, {"prompt": "Hi", "k": 3, "stop": [".", "!"], "note": "5"}),
        (2, {"prompt": "Bye", "stop": "."}),
    ]


def test_a_row_with_too_many_cells_is_an_error_of_its_own(tmp_path):
    _, items = read(tmp_path / "in.csv", "prompt,id\nHi,1\nBye,2,3\nSo,4\n")
    assert [type(item) for _, item in items] == [dict, LineError, dict]


def test_text_is_a_prompt_a_line(tmp_path):
    content = "How do I?\r\n\nAnd so?\n"
    for name, reading in (("in.txt", {}), ("in", {"format": "text"})):
        format, items = read(tmp_path / name, content, **reading)
        assert (format, [number for number, _ in items]) == ("text", [1, 3])


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_an_empty_file_is_a_file_without_lines(tmp_path, content, packed):
    content = gzip.compress(content.encode()) if packed else content
    assert read(tmp_path / "in.jsonl", content) == ("jsonl", [])


def test_a_first_line_of_any_length_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("args_fast.jobs.lines.MAX_LINE", 50)
    format, items = read(tmp_path / "in.jsonl", "x" * 120 + "\n" + LINES)
    assert format == "jsonl"
    assert items[0] == (1, "x" * 51)
    assert items[1:] == numbered(LINES, 2)


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_a_pipe_is_read_once(monkeypatch, chunk):
    class Pipe(io.RawIOBase):
        """Gives a few bytes at a time, and cannot be rewound."""

        def __init__(self, content):
            self.content = io.BytesIO(content)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.content.readinto(memoryview(buffer)[:chunk])

    for content in (b"bad\n" + LINES.encode(), gzip.compress(b"bad\n" + LINES.encode())):
        stdin = SimpleNamespace(buffer=io.BufferedReader(Pipe(content)))
        monkeypatch.setattr(sys, "stdin", stdin)
        with opened("-", Reading("auto")) as source:
            found = [number for number, _ in source.items()]
        assert found == [1, 2, 3]


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LINES.encode("utf-16"), "UTF-16, and batch reads UTF-8; convert it: iconv -f UTF-16"),
        (LINES.encode("utf-16-le"), "UTF-16"),
        (LINES.encode("utf-16-be"), "UTF-16"),
        (codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"), "UTF-16"),
        (LINES.encode("utf-32"), "UTF-32"),
        (gzip.compress(LINES.encode("utf-16")), "UTF-16"),
        (b"PAR1xxxx", "Parquet"),
        (b"PK\x03\x04xxxx", "a zip file"),
        (b"\x28\xb5\x2f\xfdxx", "zstd"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (LINES.replace("\n", "\r").encode(), "end in CR alone; convert it: tr"),
        (gzip.compress(LINES.encode())[:40], "damaged"),
        (gzip.compress(LINES.encode())[:12], "damaged"),
        (b"\x1f\x8bnot gzip at all", "damaged"),
        (b"Dear all,\nmany thanks.\n", "none of the formats that batch reads: line 1 is not JSON"),
        (b"{}\n", "its first object has no keys"),
        (b'{"text": "a", "label": 1}\n', "its first object has the keys text, label"),
        (b'{"text": "a"}\n', "--prompt-field"),
        (b'{\n "prompt": "a"\n}\n', "not JSON"),
        (b'{"prompt": "a"},\n{"prompt": "b"},\n', "not JSON: Extra data"),
        (b'[{"prompt": "a"}', "begins as a JSON array and is not one"),
        (b"[]", "none of the formats"),
        (b"[5, 6]\n", "none of the formats"),
    ],
    ids=range(24),
)
def test_a_file_in_no_format_is_refused(tmp_path, content, words):
    assert words in refused(tmp_path / "in.jsonl", content)


@pytest.mark.parametrize(
    ("name", "content", "reading", "words"),
    [
        ("a.csv", "a,b\n1,2\n", {}, "has the columns a, b, and none is called prompt"),
        ("a.csv", "", {}, "(none)"),
        ("a.csv", "prompt\nHi\n", {"prompt_field": "q"}, "none is called q"),
        ("a.jsonl", LINES, {"prompt_field": "q"}, "no line with the key q"),
        (
            "a.jsonl",
            LINES,
            {"format": "hh"},
            "not in the format hh, whose objects have the key chosen",
        ),
        ("a.jsonl", "x\n", {"format": "jsonl"}, "no line with the key prompt: line 1 is not JSON"),
    ],
)
def test_a_format_that_is_asked_for_is_checked(tmp_path, name, content, reading, words):
    assert words in refused(tmp_path / name, content, **reading)


def test_a_prompt_field_is_for_formats_without_a_key_of_their_own(tmp_path):
    (tmp_path / "a").write_text(HH)
    with pytest.raises(JobError, match="for the formats jsonl and csv, not hh"):
        read(tmp_path / "a", format="hh", prompt_field="q")


def test_a_damaged_end_is_found_when_it_is_read(tmp_path):
    content = gzip.compress(
        LINES.encode() + b"".join(b'{"prompt": "%d"}\n' % i for i in range(9999))
    )
    (tmp_path / "in.gz").write_bytes(content[: len(content) // 2])
    with (
        opened(str(tmp_path / "in.gz"), Reading("auto")) as source,
        pytest.raises(JobError, match=r"in\.gz is damaged"),
    ):
        list(source.items())


def test_a_closed_standard_input_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(JobError, match="standard input is closed"), opened("-", Reading("auto")):
        pass


def test_conversations_that_end_with_an_answer_are_warned_of(tmp_path):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for lines, warned in (([talk], 1), ([talk[:1], talk], 0), ([talk, talk], 1)):
        content = "".join(json.dumps({"messages": each}) + "\n" for each in lines)
        if warned:
            with pytest.warns(UserWarning, match=r"in\.jsonl ends with a message of the assistant"):
                read(tmp_path / "in.jsonl", content)
        else:
            read(tmp_path / "in.jsonl", content)


def test_no_more_lines_are_searched_than_said(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "TRIED", 3)
    assert "none of the formats" in refused(tmp_path / "in.jsonl", "bad\n" * 3 + LINES)
    assert read(tmp_path / "in.jsonl", "bad\n" * 2 + LINES)[0] == "jsonl"
