"""Methods are read from the command line and from YAML, and become the engine's options."""

import pytest

from args_fast.errors import ArgsError
from args_fast.eval.methods import KINDS, parse

PAPER = {
    "greedy": "greedy",
    "top-k": "top-k:k=40,temperature=0.7",
    "nucleus": "nucleus:p=0.95,temperature=1",
    "contrastive": "contrastive:k=8,alpha=0.6",
    "best-of-n": "best-of-n:n=10,k=40,temperature=0.7",
    "args-greedy": "args-greedy:w=1.5,k=10",
    "args-stochastic": "args-stochastic:w=1.5,k=10,temperature=0.7",
}


@pytest.mark.parametrize(("kind", "key"), PAPER.items())
def test_defaults_are_the_papers_and_the_key_reads_back(kind, key):
    method = parse(kind)
    assert method.key == method.label == key
    assert parse(key) == method


def test_every_kind_has_a_case_here():
    assert set(PAPER) | {"policy"} == set(KINDS)


@pytest.mark.parametrize(
    "written",
    [
        "args-greedy:w=0.123456789,k=4,name=mine",
        {"args-greedy": {"w": 0.123456789, "k": 4, "name": "mine"}},
    ],
)
def test_options_come_as_text_or_as_a_mapping(written):
    method = parse(written)
    assert method.key == "args-greedy:w=0.123456789,k=4"
    assert method.label == "mine"


@pytest.mark.parametrize(
    ("written", "config"),
    [
        ("greedy", {"k": 1, "w": 0.0, "temperature": None}),
        ("policy:path=out/dpo", {"k": 1, "w": 0.0, "temperature": None}),
        ("top-k:k=5", {"k": 5, "w": 0.0, "temperature": 0.7}),
        ("best-of-n:n=3", {"k": 40, "w": 0.0, "num_return_sequences": 3}),
        ("args-greedy:w=2", {"k": 10, "w": 2.0, "temperature": None}),
        ("args-stochastic:temperature=1", {"k": 10, "w": 1.5, "temperature": 1.0}),
    ],
)
def test_config_is_what_the_engine_runs(written, config):
    found = parse(written).config(7, 3, ("x",))
    assert {name: getattr(found, name) for name in config} == config
    assert (found.max_new_tokens, found.seed, found.stop) == (7, 3, ("x",))


@pytest.mark.parametrize(
    ("written", "rows"),
    [
        ("greedy", (1, 0)),
        ("top-k", (1, 0)),
        ("contrastive:k=8", (8, 0)),
        ("best-of-n:n=4", (4, 4)),
        ("args-greedy:k=20", (1, 20)),
        ("args-greedy:w=0", (1, 0)),
        ("args-greedy:k=1", (1, 0)),
        ("policy:path=x", (1, 0)),
    ],
)
def test_rows_are_those_of_the_algorithm(written, rows):
    assert tuple(parse(written).rows.values()) == rows


def test_a_policy_has_a_language_model_of_its_own():
    assert parse("policy:path=out/dpo,name=DPO").lm == "out/dpo"
    assert parse("greedy").lm is None


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("beam", "the method is 'beam'; it must be one of greedy, top-k"),
        ("greedy:k=2", "greedy has no option 'k'; its options are none but name"),
        ("args-greedy:k", "'k' in the method 'args-greedy:k' is not option=value"),
        ("args-greedy:k=1.5", "k of args-greedy is '1.5'; it must be a whole number, such as 10"),
        ({"args-greedy": {"k": 1.5}}, "k of args-greedy is 1.5; it must be a whole number"),
        ("args-greedy:w=much", "w of args-greedy is 'much'; it must be a number, such as 1.5"),
        ("args-greedy:k=500", "k is 500; it must be a whole number from 1 to 128"),
        (
            "args-stochastic:temperature=0",
            "temperature of args-stochastic is 0.0; it must be 1e-06",
        ),
        ("nucleus:p=0", "p of nucleus is 0.0; it must be 1e-06 to 1"),
        ("contrastive:alpha=2", "alpha of contrastive is 2.0; it must be 0 to 1"),
        ("contrastive:k=0", "k of contrastive is 0; it must be 1 to 128"),
        ("policy", "policy needs path=..., such as policy:path=out/dpo"),
        ({"greedy": {}, "top-k": {}}, "it must be one kind with its options"),
    ],
)
def test_parse_says_what_is_wrong(written, says):
    with pytest.raises(ArgsError) as caught:
        parse(written)
    assert says in str(caught.value)
