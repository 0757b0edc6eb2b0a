"""``args-fast batch``: a file of prompts in, a file of records out, what it came to at the end."""

import json
import sys

import pytest
from test_help import words

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.cli import batch as subject
from args_fast.cli.pair import as_prompt
from args_fast.tiny_pair import LM, RM

SHORT = ("--max-new-tokens", 6, "--device", "cpu", "--chat")
PROMPTS = ["How do I grow mint?", "Suggest a short walk.", "Tell me of a lake."]


@pytest.fixture
def source(tmp_path):
    """Three prompts; the second line sets options of its own."""
    path = tmp_path / "in.jsonl"
    overrides = [{"id": "a"}, {"w": 0, "temperature": 2.0, "seed": 5}, {"id": {"n": 3}}]
    records = [{"prompt": p} | more for p, more in zip(PROMPTS, overrides, strict=True)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def records(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def expected(pair, prompt, *, chat=True, **options):
    asked = as_prompt(prompt, chat=chat)
    (result,) = pair.generate(asked, DecodingConfig(**{"max_new_tokens": 6} | options))
    return result


def refused(result, *texts):
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for text in ("error:", *texts):
        assert text in result.stderr


# ---- what comes out ------------------------------------------------------------------------------


def test_each_line_has_the_record_of_what_it_asks_for(cli, pair, source, output):
    result = cli("batch", source, output, *SHORT, "--k", 5)
    assert result.exit_code == 0
    assert result.stdout == ""
    first, second, third = records(output)
    assert [record["line"] for record in (first, second, third)] == [1, 2, 3]
    assert (first["id"], third["id"]) == ("a", {"n": 3})
    assert "id" not in second
    wanted = [
        expected(pair, PROMPTS[0], k=5),
        expected(pair, PROMPTS[1], k=5, w=0, temperature=2.0, seed=5),
        expected(pair, PROMPTS[2], k=5),
    ]
    for record, generation in zip((first, second, third), wanted, strict=True):
        assert record["text"] == generation.text
        assert record["token_ids"] == generation.token_ids
        assert record["finish_reason"] == generation.finish_reason
        assert record["prompt_tokens"] == len(generation.prompt_token_ids)
        assert "rewards" not in record


def test_stderr_says_which_pair_is_used_and_sums_up(cli, source, output):
    notes = cli("batch", source, output, *SHORT).stderr
    assert "using the embedded tiny pair" in notes
    assert "3 records in " in notes
    assert "18 tokens, " in notes
    assert "tokens/s, mean reward " in notes


def test_scores_hold_a_number_for_each_token_and_null_for_what_is_not_known(
    cli, pair, source, output
):
    cli("batch", source, output, *SHORT, "--scores")
    first, second, _ = records(output)
    wanted = expected(pair, PROMPTS[0])
    assert first["rewards"] == pytest.approx(wanted.rewards, abs=1e-3)
    assert first["logprobs"] == pytest.approx(wanted.logprobs, abs=1e-3)
    assert first["scores"] == pytest.approx(wanted.scores, abs=1e-3)
    assert second["rewards"] == [None] * 6  # w = 0


def test_text_is_not_wrapped_unless_chat_is_asked_for(cli, pair, source, output):
    result = cli("batch", source, output, *(x for x in SHORT if x != "--chat"))
    assert records(output)[0]["token_ids"] == expected(pair, PROMPTS[0], chat=False).token_ids
    assert "--chat" in result.stderr


def test_options_of_a_line_may_be_any_of_the_config(cli, pair, source, output):
    lines = [
        {"prompt": PROMPTS[0], "return_candidates": True, "k": 3},
        {"prompt": PROMPTS[0], "num_return_sequences": 2, "temperature": 3.0, "seed": 4},
        {"prompt": PROMPTS[0], "temperature": 0, "stop": None},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli("batch", source, output, *SHORT).exit_code == 0
    _, sampled, plain = records(output)
    samples = [expected(pair, PROMPTS[0], temperature=3.0, seed=seed) for seed in (4, 5)]
    assert [x["token_ids"] for x in sampled["samples"]] == [x.token_ids for x in samples]
    assert plain["token_ids"] == expected(pair, PROMPTS[0]).token_ids


def test_messages_and_chat_are_one_prompt(cli, pair, source, output):
    talk = [{"role": "user", "content": PROMPTS[0]}]
    source.write_text(json.dumps({"messages": talk}) + "\n" + json.dumps({"prompt": talk}) + "\n")
    cli("batch", source, output, *(x for x in SHORT if x != "--chat"))
    first, second = records(output)
    wanted = expected(pair, PROMPTS[0])
    assert first["token_ids"] == second["token_ids"] == wanted.token_ids


def test_a_template_that_refuses_one_prompt_is_one_error_record(cli, source, output, tmp_path):
    for file in LM.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no bad words') }}"
        "{% endif %}\n\nHuman: {{ m.content }}{% endfor %}\n\nAssistant:"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    lines = [{"id": i, "prompt": "bad" if i == 1 else "good"} for i in range(3)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = ("--lm", tmp_path, "--rm", RM)
    assert cli("batch", source, output, *SHORT, *models).exit_code == 1
    found = records(output)
    assert [record["id"] for record in found] == [0, 1, 2]
    assert ["error" in record for record in found] == [False, True, False]
    assert "no bad words" in found[1]["error"]["message"]
    assert found[1]["error"]["type"] == "PromptError"


def test_unordered_holds_the_same_records(cli, source, output, tmp_path):
    cli("batch", source, output, *SHORT)
    cli("batch", source, tmp_path / "unordered.jsonl", *SHORT, "--unordered")
    found = records(tmp_path / "unordered.jsonl")
    assert sorted(found, key=lambda record: record["line"]) == records(output)


def test_json_holds_the_sums(cli_json, pair, source, output):
    summary = cli_json("batch", source, output, *SHORT)
    assert (summary["records"], summary["errors"]) == (3, 0)
    assert summary["new"] == {"records": 3, "errors": 0, "tokens": 18}
    assert summary["tokens_per_second"] == pytest.approx(18 / summary["seconds"])
    rewards = [expected(pair, PROMPTS[i]).rewards[-1] for i in (0, 2)]  # the second has w = 0
    assert summary["mean_reward"] == pytest.approx(sum(rewards) / 2, abs=1e-3)
    assert summary["settings"]["lm"] == str(LM)
    assert summary["settings"]["dtype"] == "float32"
    assert summary["settings"]["defaults"]["max_new_tokens"] == 6


def test_a_terminal_shows_how_far_it_is(cli, source, output, monkeypatch):
    monkeypatch.setattr(subject.notes, "_force_terminal", True)
    shown = cli("batch", source, output, *SHORT).stderr
    assert "3/3" in shown
    assert "tokens/s, mean reward" in shown
    monkeypatch.undo()
    assert "3/3" not in cli("batch", source, output, *SHORT, "--restart").stderr


# ---- defaults ------------------------------------------------------------------------------------


def test_a_line_overrides_an_option_and_an_option_the_file(cli, pair, source, output, tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"k": 3, "w": 7, "temperature": 0.7, "max_new_tokens": 4}')
    # 10 is --k's default, and yet it was given.
    cli("batch", source, output, "--config", config, "--k", 10, "--device", "cpu", "--chat")
    first, second, _ = records(output)
    wanted = expected(pair, PROMPTS[0], k=10, w=7, temperature=0.7, max_new_tokens=4)
    assert first["token_ids"] == wanted.token_ids
    wanted = expected(pair, PROMPTS[1], k=10, w=0, temperature=2.0, seed=5, max_new_tokens=4)
    assert second["token_ids"] == wanted.token_ids


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kk": 3}', ('"kk", which is not an option',)),
        ("{", ("not JSON",)),
        ('{"k": 0}', ("k is 0",)),
    ],
)
def test_a_bad_config_file_is_refused(cli, source, output, tmp_path, text, words):
    config = tmp_path / "config.json"
    config.write_text(text)
    refused(cli("batch", source, output, "--config", config), *words)
    assert not output.exists()


# ---- bad lines -----------------------------------------------------------------------------------


def test_a_bad_line_is_an_error_record_and_the_rest_is_decoded(cli, source, output):
    good = source.read_text()
    bad = [
        "nonsense",
        "{}",
        json.dumps({"prompt": "x", "max_new_tokens": 99999, "id": "long"}),
        json.dumps({"prompt": [10**6]}),
        json.dumps({"prompt": "x", "w": "heavy"}),
    ]
    source.write_text("\n".join(bad) + "\n" + good)
    result = cli("batch", source, output, *SHORT)
    assert result.exit_code == 1
    assert "5 of 8 are error records" in result.stderr
    assert "jq -c 'select(.error)'" in result.stderr
    found = records(output)
    assert [record["line"] for record in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [record["error"]["type"] for record in found[:5]] == [
        "LineError",
        "LineError",
        "LengthError",
        "PromptError",
        "ConfigError",
    ]
    assert found[2]["id"] == "long"
    assert "at most" in found[2]["error"]["message"]
    assert all("error" not in record for record in found[5:])


def test_a_finished_job_with_errors_still_says_so(cli, source, output):
    with open(source, "a") as file:
        file.write("nonsense\n")
    assert cli("batch", source, output, *SHORT).exit_code == 1
    assert cli("batch", source, output, *SHORT).exit_code == 1


# ---- resuming ------------------------------------------------------------------------------------


def test_an_interrupted_job_resumes(cli, source, output, monkeypatch):
    whole = output.with_name("whole.jsonl")
    cli("batch", source, whole, *SHORT)
    complete = ArgsDecoder.complete

    def interrupted(self, requests):
        for item in complete(self, requests):
            yield item
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ArgsDecoder, "complete", interrupted)
        result = cli("batch", source, output, *SHORT, "--max-batch-size", 1)
    assert result.exit_code == 130
    assert "1 records are in" in result.stderr
    assert len(records(output)) == 1
    with open(output, "ab") as file:
        file.write(b'{"line": 2, "te')
    result = cli("batch", source, output, *SHORT)
    assert result.exit_code == 0
    assert "a torn last line of 15 bytes was cut off" in result.stderr
    assert "resuming: 1 of 3 lines are done" in result.stderr
    assert output.read_bytes() == whole.read_bytes()


def test_a_finished_job_loads_no_models(cli, source, output, monkeypatch):
    cli("batch", source, output, *SHORT)
    monkeypatch.setattr(subject, "load_pair", lambda *arguments, **options: pytest.fail("loaded"))
    result = cli("batch", source, output, *SHORT)
    assert result.exit_code == 0
    assert "all 3 lines have their record" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--k", 4), ("defaults.k was 10 and is 4",)),
        (("--unordered",), ("ordered was true",)),
        (("--dtype", "bfloat16"), ('dtype was "float32" and is "bfloat16"',)),
        (("--lm", "COPY", "--rm", RM), ("lm was",)),
    ],
)
def test_other_options_are_another_job(cli, source, output, options, words, tmp_path):
    cli("batch", source, output, *SHORT)
    before = output.read_bytes()
    (tmp_path / "copy").symlink_to(RM)
    options = [tmp_path / "copy" if option == "COPY" else option for option in options]
    refused(cli("batch", source, output, *SHORT, *options), "another job", "--restart", *words)
    assert output.read_bytes() == before


def test_restart_starts_over(cli, source, output):
    cli("batch", source, output, *SHORT)
    result = cli("batch", source, output, *SHORT, "--max-new-tokens", 3, "--restart")
    assert result.exit_code == 0
    assert [len(record["token_ids"]) for record in records(output)] == [3, 3, 3]


def test_failed_lines_are_decoded_again(cli, source, output):
    good = source.read_text().splitlines()
    source.write_text("\n".join([good[0], json.dumps({"prompt": "x" * 9000}), *good[1:]]) + "\n")
    result = cli("batch", source, output, *SHORT)
    assert result.exit_code == 1
    assert "--retry-errors" in result.stderr
    before = records(output)
    result = cli("batch", source, output, *SHORT, "--retry-errors")
    assert result.exit_code == 1
    assert "resuming: 3 of 4 lines are done" in result.stderr
    assert "1 records in" in result.stderr
    assert records(output) == before


# ---- formats -------------------------------------------------------------------------------------


HUMAN = "\n\nHuman: How do I grow mint?\n\nAssistant:"


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.jsonl", json.dumps({"chosen": HUMAN + " In a pot.", "rejected": HUMAN + " No."}), ()),
        ("a.json", json.dumps([{"instruction": PROMPTS[0], "dataset": "x"}]), ("--chat",)),
        ("a.csv", "n,question\n7," + PROMPTS[0], ("--prompt-field", "question", "--chat")),
        ("a.txt", PROMPTS[0] + "\r\n", ("--chat",)),
        ("a", PROMPTS[0], ("--chat", "--format", "text")),
    ],
    ids=["hh", "alpacaeval", "csv", "text", "named"],
)
def test_formats_that_people_have(cli, pair, tmp_path, output, name, content, options):
    (tmp_path / name).write_bytes(content.encode())
    short = (x for x in SHORT if x != "--chat")
    result = cli("batch", tmp_path / name, output, *short, *options)
    assert result.exit_code == 0, result.stderr
    (record,) = records(output)
    assert record["token_ids"] == expected(pair, PROMPTS[0]).token_ids
    assert f"{name} is read as" in result.stderr


def test_a_file_in_no_format_stops_before_models_are_loaded(cli, source, output, monkeypatch):
    monkeypatch.setattr(subject, "load_pair", lambda *arguments, **options: pytest.fail("loaded"))
    source.write_text("Dear all,\nmany thanks.\n")
    refused(cli("batch", source, output, *SHORT), "in none of the formats", "--format")
    assert not output.exists()
    refused(cli("batch", "-", output, *SHORT, piped="x\ty\n"), "in none of the formats")


def test_other_keys_are_kept_where_that_is_asked_for(cli, source, output):
    source.write_text(json.dumps({"prompt": "hi", "id": 1, "source": "web", "k": 2}) + "\n")
    cli("batch", source, output, *SHORT, "--keep")
    (record,) = records(output)
    assert (record["id"], record["input"]) == (1, {"source": "web"})
    cli("batch", source, output, *SHORT, "--restart")
    assert "input" not in records(output)[0]


# ---- pipes ---------------------------------------------------------------------------------------


def test_standard_input_to_standard_output(cli, source, output):
    cli("batch", source, output, *SHORT)
    result = cli("batch", "-", "-", *SHORT, piped=source.read_text())
    assert result.exit_code == 0
    assert result.stdout.encode() == output.read_bytes()
    assert "error" not in result.stderr


def test_json_and_records_do_not_share_standard_output(cli, source):
    refused(cli("batch", source, "-", "--json"), "both want standard output")


# ---- what cannot work ----------------------------------------------------------------------------


def test_an_input_that_is_not_there_is_refused(cli, tmp_path, output):
    refused(cli("batch", tmp_path / "none.jsonl", output), "No such file", "none.jsonl")


def test_actors_are_for_ray(cli, source, output):
    refused(cli("batch", source, output, "--actors", 2), "--actors is for --ray")


def test_a_gpu_for_the_reward_model_is_not_for_rays_actors(cli, source, output):
    asked = ("--ray", "--rm-device", "cuda:1")
    refused(cli("batch", source, output, *asked), "--rm-device is not for --ray")


def test_without_ray_the_way_to_get_it_is_said(cli, source, output, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(cli("batch", source, output, "--ray"), "pip install 'args-fast[ray]'")


def test_help_explains_and_shows_examples(cli):
    shown = words(cli("batch", "--help"))
    for option in (
        *("--lm", "--rm", "--k", "--w", "--temperature", "--seed", "--max-new-tokens", "--stop"),
        *("--config", "--chat", "--unordered", "--scores", "--restart", "--ray", "--actors"),
        *("--max-batch-size", "--dtype", "--device", "--json", "--eos"),
        *("--format", "--prompt-field", "--keep", "--retry-errors"),
    ):
        assert option in shown
    assert "args-fast batch in.jsonl out.jsonl --chat --max-new-tokens 64" in shown
    assert "pip install 'args-fast[ray]'" in shown
    assert "Exit code: 0 where all went well" in shown
