"""Prompts of every schema, from local files; what is wrong is said in a sentence."""

import json

import pytest

from args_fast.errors import EvaluationError
from args_fast.eval.data import Item, load, sample
from args_fast.tiny_pair import HELDOUT

USER = {"role": "user", "content": "How?"}
TURNS = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant:"


def written(folder, name, content):
    file = folder / name
    if isinstance(content, list) and name.endswith(".jsonl"):
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("kind", "name", "content", "expected"),
    [
        ("hh", "a.jsonl", [{"prompt": TURNS, "chosen": " x"}], [("0", TURNS)]),
        (
            "shp",
            "a.jsonl",
            [
                {"history": "Why?", "post_id": "p1", "labels": 1},
                {"history": "Why?", "post_id": "p1", "labels": 0},
                {"history": "When?", "post_id": "p2", "labels": 0},
            ],
            [("p1", " Human: Why? Assistant: "), ("p2", " Human: When? Assistant: ")],
        ),
        ("alpaca_eval", "a.json", [{"instruction": "How?", "output": ""}], [("0", [USER])]),
        (
            "chat",
            "a.jsonl",
            [{"id": 7, "messages": [USER, {"role": "assistant", "content": "So."}]}],
            [("7", [USER])],
        ),
        ("chat", "a.jsonl", [{"prompt": [USER]}], [("0", [USER])]),
        (
            "text",
            "a.txt",
            "One\n\nTwo\u2028still two\n",
            [("0", "One"), ("1", "Two\u2028still two")],
        ),
        ("text", "a.jsonl", [{"prompt": "One", "id": "x"}], [("x", "One")]),
    ],
)
def test_load_reads_the_schema(tmp_path, kind, name, content, expected):
    items = load(f"{kind}:{written(tmp_path, name, content)}")
    assert [(item.id, item.prompt) for item in items] == expected


def test_load_reads_what_datasets_reads(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "One"}, {"prompt": "Two"}]
    file = tmp_path / "a.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(file))
    assert [item.prompt for item in load(f"hh:{file}")] == ["One", "Two"]


def test_the_embedded_prompts_are_of_hh_schema():
    items = load(f"hh:{HELDOUT}")
    assert len(items) == 200
    assert items[0].prompt.startswith("\n\nHuman: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TURNS, ["Hi", "Hello.", "How?"]),
        ("How?", ["How?"]),
        ("\n\nHuman: How?\n\nAssistant: Well", ["How?", "Well"]),
    ],
)
def test_chat_makes_turns_of_dialogues(tmp_path, text, expected):
    (item,) = load(f"hh:{written(tmp_path, 'a.jsonl', [{'prompt': text}])}", chat=True)
    assert [turn["content"] for turn in item.prompt] == expected
    assert item.prompt[0]["role"] == "user"


def test_no_chat_makes_texts_of_one_turn(tmp_path):
    file = written(tmp_path, "a.json", [{"instruction": "How?"}])
    (item,) = load(f"alpaca_eval:{file}", chat=False)
    assert item.prompt == "How?"
    longer = written(tmp_path, "b.jsonl", [{"messages": [USER, USER]}])
    with pytest.raises(EvaluationError, match="conversation of 2 turns"):
        load(f"chat:{longer}", chat=False)


@pytest.mark.parametrize(
    ("source", "content", "says"),
    [
        ("books:{}", [], "must be one of hh, shp, alpaca_eval, chat, text"),
        ("text", None, "text has no published set; give a file, such as text:FILE"),
        ("hh:{}/no.jsonl", None, "cannot read"),
        ("hh:{}", "not json", "is not JSON"),
        ("hh:{}", "[1]", "one object a line"),
        ("hh:{}", [{"text": "x"}], "row 0 of the data has no 'prompt'; hh has the fields prompt"),
        ("shp:{}", [{"history": "x"}], "has no 'post_id'"),
        ("chat:{}", [{"messages": "x"}], "must be a list of objects with role and content"),
        ("hh:{}", [{"prompt": ""}], "has no prompts"),
    ],
)
def test_load_says_what_is_wrong(tmp_path, source, content, says):
    file = tmp_path if content is None else written(tmp_path, "a.jsonl", content)
    with pytest.raises(EvaluationError, match=says):
        load(source.format(file))


def test_a_set_that_cannot_be_loaded_names_the_way_without_a_network(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*names, **options):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(EvaluationError, match=r"no network\. A local .jsonl file with the same"):
        load("hh")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hh", ("Dahoas/full-hh-rlhf", {"split": "test"})),
        ("hh:org/mine", ("org/mine", {"split": "test"})),
        ("alpaca_eval", ("json", {"split": "train"})),
    ],
)
def test_published_sets_are_asked_for_by_name(monkeypatch, source, expected):
    datasets = pytest.importorskip("datasets")
    asked = []

    def answer(name, split, data_files=None):
        asked.append((name, {"split": split}))
        return [{"prompt": "x", "instruction": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", answer)
    load(source)
    assert asked == [expected]


def test_sample_draws_by_the_seed_and_counts_what_does_not_fit():
    items = [Item(str(i), "x" * i) for i in range(1, 21)]
    every, skipped = sample(items, None, 0, lambda item: len(item.prompt) <= 15)
    assert ([item.id for item in every], skipped) == ([str(i) for i in range(1, 16)], 5)
    drawn, _ = sample(items, 6, 1, lambda item: True)
    assert drawn == sample(items, 6, 1, lambda item: True)[0]
    assert drawn != sample(items, 6, 2, lambda item: True)[0]
    fitting, skipped = sample(items, 6, 1, lambda item: item not in drawn[:2])
    assert (fitting[:4], skipped) == (drawn[2:], 2)
    assert len(fitting) == 6


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("How?", "How?"),
        ([USER], "How?"),
        (
            [USER, {"role": "assistant", "content": "So."}, USER],
            "User: How?\n\nAssistant: So.\n\nUser: How?",
        ),
    ],
)
def test_text_is_what_a_reader_of_plain_text_sees(prompt, expected):
    assert Item("0", prompt).text == expected
