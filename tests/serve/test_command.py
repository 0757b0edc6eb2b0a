"""``args-fast serve`` as a command: what it refuses before it loads anything."""

import socket
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from args_fast.cli import app
from args_fast.cli import serve as subject
from args_fast.options import EngineOptions


def run(*arguments, **environment):
    return CliRunner().invoke(app, ["serve", *arguments], env=environment)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lm", "x"], "--lm is given without --rm"),
        (["--max-model-len", "1"], "max_model_len is 1"),
        (["--k", "0"], "--k"),
        (["--port", "0", "--memory-fraction", "2"], "memory_fraction is 2.0"),
        (["--port", "70000"], "--port"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys"),
        (["--served-model-name", ""], "no name"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1, port 8000"),
        (
            ["--port", "0", "--max-model-len", "600"],
            "max_model_len is 600; the models and the cache",
        ),
    ],
)
def test_bad_option_is_one_line(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_address_that_is_taken_is_said_before_loading(monkeypatch):
    monkeypatch.setattr(subject, "load_pair", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "give another --host or --port" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ([], False),
        (["--host", "localhost"], False),
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--api-key", "x"], False),
    ],
)
def test_open_door_is_pointed_out(monkeypatch, arguments, warned):
    started = []
    monkeypatch.setattr(subject, "_serve", lambda *given: started.append(given))
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert ("without API keys" in result.stderr) is warned
    assert started[0][-2] == (arguments[1] if arguments else "127.0.0.1")


def test_options_reach_the_server(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(subject, "_serve", lambda *given: started.append(given))
    keys = tmp_path / "keys"
    keys.write_text("c\n")
    result = run(
        *("--k", "5", "--w", "0.5", "--limit-n", "3", "--max-waiting", "7", "--max-body", "2048"),
        *("--api-key-file", str(keys), "--drain-seconds", "1", "--log-prompts"),
        *("--max-batch-size", "4", "--max-model-len", "100", "--cache-bytes", "123456"),
        *("--no-cuda-graphs", "--memory-fraction", "0.5", "--compile", "--no-fused-layers"),
        ARGS_FAST_API_KEYS="a,b",
    )
    assert result.exit_code == 0, result.stderr
    models, server, _, port = started[0]
    assert (server.defaults.k, server.defaults.w) == (5, 0.5)
    assert (server.limit_n, server.max_waiting, server.max_body) == (3, 7, 2048)
    assert (server.max_model_len, server.drain_seconds, server.log_prompts) == (100, 1.0, True)
    assert server.api_keys == ("a", "b", "c")
    assert server.model_names == ("args-fast-tiny",)
    assert server.demonstration
    engine = {
        f.name: models.options.get(f.name) for f in fields(EngineOptions) if f.metadata["flag"]
    }
    assert engine == {
        "max_batch_size": 4,
        "cache_bytes": 123456,
        "cuda_graphs": False,
        "memory_fraction": 0.5,
        "torch_compile": True,
        "fused_layers": False,
        "draft": None,
    }
    assert port == 8000


@pytest.mark.parametrize(
    ("lm", "name"), [(None, "args-fast-tiny"), ("org/model", "org/model"), ("folder", "folder")]
)
def test_name_does_not_show_where_the_model_lies(tmp_path, monkeypatch, lm, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert subject._name(lm) == name
    assert subject._name(str(tmp_path / "folder")) == "folder"


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    result = run()
    assert result.exit_code == 2
    assert "pip install 'args-fast[serve]'" in " ".join(result.stderr.split())


@pytest.mark.parametrize("replicas", ["0", "2:1", "x", "1:2:3", ""])
def test_bad_replicas_are_refused(replicas):
    from refusals import refuses

    from args_fast.errors import ConfigError
    from args_fast.serve.ray_app import Scale

    with refuses(ConfigError, "replicas is", "such as 1:4"):
        Scale.parse(replicas, 1.0, 0)
    assert Scale.parse("2", 1.0, 0) == Scale(2, 2, 1.0, 0)
    assert Scale.parse("1:4", 0.5, 1) == Scale(1, 4, 0.5, 1)


def test_drafts_reach_the_server(monkeypatch):
    started = []
    monkeypatch.setattr(subject, "_serve", lambda *given: started.append(given))
    result = run("--draft", "ngram")
    assert result.exit_code == 0, result.stderr
    assert started[0][0].options["draft"] == "ngram"
