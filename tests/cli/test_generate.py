"""``args-fast generate``: one prompt in, its text on stdout, everything else on stderr."""

import json
import os
import pty
import subprocess
import sys
from math import log

import pytest
import torch

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.models import compiled
from args_fast.tiny_pair import HELDOUT, LM, RM

QUESTION = "How do I grow mint?"
SHORT = ("--max-new-tokens", 12, "--device", "cpu")


@pytest.fixture(scope="module")
def wrapped(pair):
    """The question as the chat template has it."""
    turn = [{"role": "user", "content": QUESTION}]
    return pair.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def python(*arguments, **options):
    """A process of its own, with one thread: two cores are shared with other tests."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, timeout=120, **options
    )


# ---- what comes out ------------------------------------------------------------------------------


def test_stdout_is_the_text_and_nothing_else(cli, pair, wrapped):
    result = cli("generate", "--chat", QUESTION, *SHORT)
    (expected,) = pair.generate(wrapped, DecodingConfig(max_new_tokens=12))
    assert result.exit_code == 0
    assert result.stdout == expected.text + "\n"


def test_stderr_says_that_the_embedded_pair_is_used_and_sums_up(cli):
    notes = cli("generate", "--chat", QUESTION, *SHORT).stderr
    assert "no --lm/--rm given: using the embedded tiny pair (a demonstration, " in notes
    assert "M parameters)" in notes
    assert "12 tokens in" in notes
    assert "reward " in notes
    assert ", mean " in notes
    assert "ended by --max-new-tokens" in notes


def test_named_models_need_no_note(cli):
    result = cli("generate", "--chat", QUESTION, "--lm", LM, "--rm", RM, *SHORT)
    assert result.exit_code == 0
    assert "embedded" not in result.stderr


@pytest.mark.parametrize("arguments", [(), ("-",)])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_the_prompt_may_be_piped_in(cli_json, arguments, end):
    piped = cli_json("generate", "--chat", *arguments, *SHORT, piped=QUESTION + end)
    typed = cli_json("generate", "--chat", QUESTION, *SHORT)
    assert piped["prompt"] == QUESTION
    assert piped["token_ids"] == typed["token_ids"]


def test_json_holds_the_generation_and_how_it_came_about(cli_json, pair, wrapped):
    record = cli_json("generate", "--chat", QUESTION, "--k", 5, "--w", 2, "--stop", "zzz", *SHORT)
    config = DecodingConfig(k=5, w=2.0, max_new_tokens=12, stop=("zzz",))
    (expected,) = pair.generate(wrapped, config)
    assert {field: record[field] for field in ("token_ids", "text", "prompt_token_ids")} == {
        "token_ids": expected.token_ids,
        "text": expected.text,
        "prompt_token_ids": expected.prompt_token_ids,
    }
    assert record["rewards"] == pytest.approx(expected.rewards, abs=1e-4)
    assert record["finish_reason"] == "length"
    assert record["prompt"] == QUESTION
    assert record["models"] == {"lm": str(LM), "rm": str(RM)}
    assert record["config"]["k"] == 5
    assert record["config"]["w"] == 2.0
    assert record["config"]["stop"] == ["zzz"]
    assert record["device"] == "cpu"
    assert record["dtype"] == "float32"
    assert record["versions"]["torch"] == torch.__version__
    assert record["tokens_per_second"] == pytest.approx(12 / record["seconds"])


def test_json_of_an_unrewarded_decode_has_nulls_for_numbers_that_do_not_exist(cli_json):
    record = cli_json("generate", "--chat", QUESTION, "--w", 0, *SHORT)
    assert record["rewards"] == [None] * 12


def test_compiled_models_give_the_same_text(cli_json, monkeypatch):
    graphs = []
    monkeypatch.setattr(compiled, "BACKEND", lambda graph, _: graphs.append(graph) or graph)
    asked = ("generate", "--chat", QUESTION, *SHORT)
    assert cli_json(*asked, "--compile")["token_ids"] == cli_json(*asked)["token_ids"]
    assert len(graphs) == 2


def test_the_reward_model_may_have_a_device_of_its_own(cli, cli_json):
    asked = ("generate", "--chat", QUESTION, *SHORT)
    assert cli_json(*asked, "--rm-device", "cpu")["token_ids"] == cli_json(*asked)["token_ids"]
    refused = cli(*asked, "--rm-device", "cuda:7")
    assert refused.exit_code != 0
    assert "cuda:7" in refused.stderr


def test_the_seed_decides_the_draw(cli_json):
    def draw(seed):
        sampled = ("--temperature", 3, "--w", 0.5, "--seed", seed)
        return cli_json("generate", "--chat", QUESTION, *sampled, *SHORT)["token_ids"]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_stop_may_be_repeated_and_the_first_to_come_cuts(cli, cli_json):
    text = cli_json("generate", "--chat", QUESTION, *SHORT)["text"]
    first, second = text.split()[1], text.split()[3]
    result = cli("generate", "--chat", QUESTION, "--stop", second, "--stop", first, *SHORT)
    assert result.stdout == text[: min(text.index(first), text.index(second))] + "\n"
    assert "ended by --stop" in result.stderr


# ---- how the prompt is read ----------------------------------------------------------------------


def test_chat_makes_a_user_message_of_the_prompt(cli_json, pair, wrapped):
    record = cli_json("generate", "--chat", QUESTION, *SHORT)
    assert record["prompt_token_ids"] == pair.tokenizer(wrapped).input_ids
    assert record["prompt"] == QUESTION


def test_the_embedded_pair_is_asked_as_it_was_trained(pair):
    prompt = json.loads(HELDOUT.read_text().splitlines()[0])["prompt"]
    question = prompt.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")
    ids = pair.chat(question, DecodingConfig(max_new_tokens=1)).prompt_token_ids
    assert ids == pair.tokenizer(prompt).input_ids


@pytest.mark.parametrize("text", [QUESTION, "\n\nHuman: How do I grow mint?\n\nAssistant:"])
def test_text_is_never_wrapped(cli_json, pair, text):
    ids = cli_json("generate", text, *SHORT)["prompt_token_ids"]
    assert ids == pair.tokenizer(text).input_ids


def test_bare_text_for_a_chat_model_gets_a_note_that_names_the_way(cli, wrapped):
    (note,) = (x for x in cli("generate", QUESTION, *SHORT).stderr.splitlines() if "warning" in x)
    assert "--chat" in note
    for arguments in ((wrapped,), (QUESTION, "--chat")):
        assert "warning" not in cli("generate", *arguments, *SHORT).stderr


def test_raw_is_gone(cli):
    result = cli("generate", "--chat", QUESTION, "--raw")
    assert result.exit_code == 2
    assert "--raw" in result.stderr


def test_eos_on_the_command_line(cli, cli_json):
    free = cli_json("generate", "--chat", QUESTION, *SHORT)["token_ids"]
    record = cli_json("generate", "--chat", QUESTION, "--eos", 1, "--eos", free[4], *SHORT)
    assert record["token_ids"] == free[: free.index(free[4]) + 1]
    assert record["finish_reason"] == "eos"
    assert record["config"]["eos_token_ids"] == [1, free[4]]
    assert (
        "ended by an end token"
        in cli("generate", "--chat", QUESTION, "--eos", free[4], *SHORT).stderr
    )


def test_a_stop_string_that_is_a_special_token(cli_json, pair):
    talk = "\n\nHuman: How do I teach my spaniel to sit?\n\nAssistant:"
    asked = ("generate", talk, "--eos", 1, "--stop", "<|endoftext|>", "--max-new-tokens", 150)
    record = cli_json(*asked)
    assert record["finish_reason"] == "stop"
    assert record["token_ids"][-1] == pair.tokenizer.eos_token_id
    assert record["token_ids"].count(pair.tokenizer.eos_token_id) == 1


def test_temperature_zero_is_the_argmax(cli_json):
    record = cli_json("generate", "--chat", QUESTION, "--temperature", 0, *SHORT)
    assert record["token_ids"] == cli_json("generate", "--chat", QUESTION, *SHORT)["token_ids"]
    assert record["config"]["temperature"] is None


# ---- greedy beside ARGS --------------------------------------------------------------------------


def test_compare_greedy_measures_both_alike(cli_json, pair, wrapped):
    record = cli_json("generate", "--chat", QUESTION, "--compare-greedy", *SHORT)
    (greedy,) = pair.generate(wrapped, DecodingConfig(w=0.0, max_new_tokens=12))
    (args,) = pair.generate(wrapped, DecodingConfig(max_new_tokens=12))
    assert record["greedy"]["token_ids"] == greedy.token_ids
    assert record["args"]["token_ids"] == args.token_ids
    assert record["args"]["reward"] == pytest.approx(args.rewards[-1], abs=1e-4)
    rewards = pair.rewards([wrapped], [greedy.token_ids])
    assert record["greedy"]["reward"] == pytest.approx(rewards[0], abs=1e-4)
    assert record["args"]["mean_reward"] == pytest.approx(sum(args.rewards) / 12, abs=1e-4)
    every = [pair.rewards([wrapped], [greedy.token_ids[: i + 1]])[0] for i in range(12)]
    assert record["greedy"]["mean_reward"] == pytest.approx(sum(every) / 12, abs=1e-4)
    for side in ("greedy", "args"):
        assert 0 <= record[side]["diversity"] <= 1
        assert record[side]["tokens_per_second"] == pytest.approx(12 / record[side]["seconds"])
    assert record["prompt"] == QUESTION
    assert record["device"] == "cpu"


def test_compare_greedy_shows_both_texts_on_stdout(cli, pair, wrapped):
    result = cli("generate", "--chat", QUESTION, "--compare-greedy", *SHORT)
    for config in (DecodingConfig(w=0.0, max_new_tokens=12), DecodingConfig(max_new_tokens=12)):
        (expected,) = pair.generate(wrapped, config)
        for word in expected.text.split():
            assert word in result.stdout
    for name in (QUESTION, "greedy", "ARGS k=10 w=1.5", "mean reward", "diversity", "tokens/s"):
        assert name in result.stdout
    assert "warm up" in result.stderr


# ---- what goes wrong -----------------------------------------------------------------------------


def refused(result, *words):
    """One line of error that holds the words, nothing on stdout, exit code 2."""
    assert result.exit_code == 2
    assert result.stdout == ""
    *notes, error = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert all("embedded tiny pair" in note or "warning" in note for note in notes)
    for word in words:
        assert word in error


@pytest.mark.parametrize(("given", "missing"), [("--lm", "--rm"), ("--rm", "--lm")])
def test_one_model_alone_is_refused(cli, given, missing):
    refused(cli("generate", QUESTION, given, LM), f"{given} is given without {missing}", "embedded")


@pytest.mark.parametrize("k", [0, 129, "ten"])
def test_a_k_out_of_range_is_refused(cli, k):
    result = cli("generate", QUESTION, "--k", k)
    assert result.exit_code == 2
    assert "--k" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--w", "nan"), ("w is nan", "finite")),
        (("--temperature", -1), ("temperature is -1.0", "above 0")),
        (("--max-new-tokens", 4000), ("4000 new ones", "language model takes", "at most")),
        (("--device", "abacus"), ("device is 'abacus'", "cpu")),
        (("--lm", "/no/such", "--rm", RM), ("there is no folder /no/such", "hub id")),
        (("--lm", LM, "--rm", "./none"), ("there is no folder ./none",)),
        (("--lm", LM, "--rm", LM), ("the reward model", "score.weight")),
    ],
)
def test_what_cannot_work_is_said_in_one_line(cli, options, words):
    refused(cli("generate", QUESTION, *options), *words)


def test_a_folder_without_a_model_is_refused(cli, tmp_path):
    refused(cli("generate", QUESTION, "--lm", tmp_path, "--rm", RM), "has no config.json")


def test_a_model_that_transformers_does_not_know_is_refused(cli, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    refused(cli("generate", QUESTION, "--lm", tmp_path, "--rm", RM), "abacus")


def test_weights_that_are_cut_off_are_refused(cli, tmp_path):
    for file in LM.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(cli("generate", QUESTION, "--lm", tmp_path, "--rm", RM), "damaged or cut off")


def test_a_hub_that_does_not_answer_is_said_in_one_line_after_one_try(cli, monkeypatch):
    tries = []

    def unreachable(name, file, **options):
        tries.append(name)
        raise OSError("We couldn't connect.\nCheck your internet connection.")

    monkeypatch.setattr("args_fast.models.checkpoint.cached_file", unreachable)
    result = cli("generate", QUESTION, "--lm", "org/lm", "--rm", "org/rm")
    refused(result, "org/lm is not a folder here", "couldn't connect. Check your internet")
    assert tries == ["org/lm"]


def test_a_backend_that_does_not_exist_is_refused(cli, monkeypatch):
    monkeypatch.setenv("ARGS_FAST_BACKEND", "abacus")
    refused(cli("generate", QUESTION), "abacus", "args-fast doctor")


@pytest.mark.parametrize("piped", ["", "\n", "\r\n"])
def test_an_empty_pipe_is_refused(cli, piped):
    refused(cli("generate", piped=piped), "standard input is empty", "args-fast generate")


@pytest.mark.parametrize("more", [(), ("--chat",)])
def test_an_empty_argument_is_refused(cli, more):
    refused(cli("generate", "", *more), "the prompt is empty", "args-fast generate")


@pytest.mark.parametrize("arguments", [("generate",), ("generate", "\udcff")])
def test_bytes_that_are_no_text_are_refused(cli, arguments):
    refused(cli(*arguments, piped=b"\xff\xfe"), "is not", "text")


def test_a_terminal_without_a_prompt_is_told_what_to_do():
    keyboard, terminal = pty.openpty()
    try:
        result = python(
            *("-m", "args_fast", "generate"), stdin=terminal, capture_output=True, text=True
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "there is no prompt" in result.stderr
    assert 'args-fast generate --chat "How do I teach my spaniel to sit?"' in result.stderr


def test_running_out_of_memory_is_said_in_one_line(cli, monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    monkeypatch.setattr(ArgsDecoder, "stream", exhausted)
    result = cli("generate", QUESTION)
    assert result.exit_code == 2
    assert "error: CUDA out of memory. Use smaller models" in result.stderr


def test_a_fault_of_ours_keeps_its_traceback(cli, monkeypatch):
    monkeypatch.setattr(ArgsDecoder, "stream", lambda *arguments: log(0))
    assert isinstance(cli("generate", QUESTION).exception, ValueError)


def test_interrupting_ends_quietly_with_130(cli, monkeypatch):
    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ArgsDecoder, "stream", interrupted)
    result = cli("generate", QUESTION, *SHORT)
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("closed", "words"),
    [("<&-", "standard input is closed"), (">&-", "standard output is closed")],
)
def test_a_closed_stream_is_said_in_one_line(closed, words):
    asked = QUESTION if closed == ">&-" else ""
    command = f'"$0" -m args_fast generate {asked and repr(asked)} --max-new-tokens 3 {closed}'
    result = subprocess.run(
        ["sh", "-c", command, sys.executable],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    (error,) = result.stderr.splitlines()
    assert error.startswith(f"error: {words}")


INTERRUPTED = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
load = builtins.__import__
def interrupted(name, *more):
    if name == {module}:
        builtins.__import__ = load
        {act}
    return load(name, *more)
builtins.__import__ = interrupted
sys.argv = ["args-fast", "generate", "hi"]
from args_fast.__main__ import main
main()
"""
KILL = "os.kill(os.getpid(), signal.SIGINT)"
SWALLOWED = f"""try:
            {KILL}
        except KeyboardInterrupt:
            pass
        raise ImportError("could not import")"""


@pytest.mark.parametrize(
    ("module", "act"),
    [("typer", SWALLOWED), ("torch", KILL), ("transformers", SWALLOWED)],
    ids=["typer", "torch", "transformers"],
)
def test_interrupting_an_import_ends_quietly_with_130(module, act):
    program = INTERRUPTED.replace("{act}", act).replace("{module}", repr(module))
    result = python("-c", program, capture_output=True, text=True)
    assert result.returncode == 130
    assert result.stderr.strip() == ""


# ---- as a program --------------------------------------------------------------------------------


def test_as_a_program_it_reads_a_pipe_and_prints_nothing_but_the_text(pair, wrapped):
    result = python(
        *("-m", "args_fast", "generate", "--chat", *SHORT),
        input=QUESTION,
        capture_output=True,
        text=True,
    )
    (expected,) = pair.generate(wrapped, DecodingConfig(max_new_tokens=12))
    assert result.returncode == 0
    assert result.stdout == expected.text + "\n"
    assert len(result.stderr.splitlines()) == 2
