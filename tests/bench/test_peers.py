"""The comparison with other engines: its pipe, its workers and its table, with stubs."""

import copy
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import stub_peer
import torch
from safetensors.torch import load_file
from tiny_models import language_model, tokens

from args_fast.bench import baselines, slowdown
from args_fast.bench.cases import Case
from args_fast.bench.peers import compare, ours
from args_fast.bench.peers import worker as worker_module
from args_fast.bench.peers.worker import Worker, WorkerError


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(compare, "PAUSE", 0.0)
    monkeypatch.setattr(worker_module, "FOLDER", str(Path(stub_peer.__file__).parent))


def stub(tmp_path, model="stub", room=40):
    arguments = {"model": model, "dtype": "float32", "threads": 1, "room": room}
    return Worker(Path(sys.executable), tmp_path / "stub.log", "stub_peer", arguments)


@pytest.fixture
def worker(tmp_path):
    with stub(tmp_path) as worker:
        worker.wait_until_loaded()
        yield worker


# ---- the pipe ------------------------------------------------------------------------------------


def test_worker_decodes_when_it_is_asked_to(worker, tmp_path):
    assert worker.methods == ["transformers greedy", "stub greedy", "other greedy"]
    seconds, token_ids = worker.decode("stub greedy", [[3, 5], [4, 1]], 4)
    assert token_ids == [[6, 7, 8, 9], [2, 3, 4, 5]]
    assert seconds >= 0.04
    assert "must not reach the pipe" in (tmp_path / "stub.log").read_text()


def test_decode_that_fails_is_told_and_the_worker_continues(worker):
    with pytest.raises(WorkerError, match="ValueError: room for 40 tokens"):
        worker.decode("stub greedy", [[3]], 100)
    assert worker.decode("stub greedy", [[3]], 1)[1] == [[4]]


def test_peer_that_cannot_be_loaded_says_why(tmp_path):
    with stub(tmp_path, "absent") as worker, pytest.raises(WorkerError, match="no such model"):
        worker.wait_until_loaded()


def test_process_that_ends_is_told_with_its_log(worker):
    worker._group.terminate(0.0)
    with pytest.raises(WorkerError, match=r"the process ended; see .*stub\.log"):
        worker.decode("stub greedy", [[3]], 1)


# ---- the comparison ------------------------------------------------------------------------------


CASE = Case("stub", "stub", prompt=2, dtype="float32", new_tokens=8)


@pytest.mark.parametrize("batch", [1, 3])
def test_methods_take_turns_and_their_tokens_are_compared(worker, batch, capsys):
    found = compare.compare([worker], replace(CASE, batch=batch), 2, 10**6, 0)
    said = capsys.readouterr().err.splitlines()
    assert said[3:5] == ["round 1 of 2: transformers greedy", "round 1 of 2: stub greedy"]
    assert found["stub greedy"]["equal_tokens"] == [8 * batch, 8 * batch]
    assert found["other greedy"]["equal_tokens"] == [batch, 8 * batch]
    step = found["stub greedy"]["step"]["median"]
    assert found["stub greedy"]["tokens_per_second"] == pytest.approx(batch / step)
    assert found["stub greedy"]["bytes_per_second"] == pytest.approx(10**6 / step)


def test_method_that_fails_leaves_the_others(worker):
    found = compare.compare([worker], replace(CASE, prompt=33), 2, 1, 1)
    assert "room for 40 tokens" in found["stub greedy"]["error"]


@pytest.mark.parametrize("batch", [1, 4])
def test_page_has_the_equal_tokens_of_every_method(batch):
    timed = slowdown.Method("", lambda new_tokens: (0.0, []), 11, 1, turns=[(2.0, 1.0)])
    figures = timed.figures() | {"equal_tokens": [7, 10]}
    methods = {baselines.TRANSFORMERS: figures, "vLLM greedy": {"error": "WorkerError: no"}}
    facts = {"device": "A CPU", "threads": 2, "versions": {}, "cuda": None, "commit": "c"}
    document = {"environment": facts | {"date": "2030"}, "bandwidth": 2e10, "prompt": 128}
    document |= {"batch": batch, "new_tokens": 33, "rounds": 5, "types": {"float32": methods}}
    text = compare.page(document)
    assert text.count("| equal tokens |") == 1
    assert "| 1.00 | 7/10 |" in " ".join(text.split())
    assert "- vLLM greedy: WorkerError: no" in text
    assert "## float32" in text
    assert ("4 prompts, decoded together" in text) == (batch > 1)
    assert ("llama.cpp is left out" in text) == (batch > 1)


# ---- the workers ---------------------------------------------------------------------------------


@pytest.fixture
def workers(monkeypatch, tmp_path):
    """The workers that would be started; those whose module is in ``absent`` cannot be loaded."""

    ended = []

    class Started:
        absent = ()

        def __init__(self, python, log, module, arguments):
            self.python, self.module, self.arguments = python, module, arguments

        def wait_until_loaded(self):
            if self.module in self.absent:
                raise WorkerError("no")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            ended.append(self.module)

    Started.ended = ended
    monkeypatch.setattr(compare, "Worker", Started)
    monkeypatch.setattr(compare.torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(compare.smollm2, "lm", lambda: tmp_path / "hf")
    return Started


def test_every_peer_has_the_same_threads_and_room(workers, tmp_path):
    with ExitStack() as stack:
        case = replace(CASE, prompt=191, dtype="bfloat16")
        found = compare.load(compare.PEERS, case, "bfloat16", tmp_path, stack)
    assert [worker.module for worker in found] == [
        "peers.llama_cpp",
        "peers.vllm_cpu",
        "peers.ours",
    ]
    for worker in found:
        assert worker.arguments["threads"] == 1
        assert worker.arguments["room"] == 200
        assert worker.arguments["dtype"] == "bfloat16"
    assert found[0].arguments["model"] == str(tmp_path)
    assert found[0].python == tmp_path / "llama_cpp" / "bin" / "python"
    assert found[2].python == Path(sys.executable)


def test_peer_that_is_absent_is_left_out_and_ended(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "absent", ("peers.vllm_cpu",))
    with ExitStack() as stack:
        found = compare.load(compare.PEERS, CASE, "float32", tmp_path, stack)
    assert [worker.module for worker in found] == ["peers.llama_cpp", "peers.ours"]
    assert "vllm_cpu is left out: no" in capsys.readouterr().err
    assert sorted(workers.ended) == ["peers.llama_cpp", "peers.ours", "peers.vllm_cpu"]


def test_peer_that_is_not_installed_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.smollm2, "lm", lambda: tmp_path / "hf")
    with ExitStack() as stack:
        assert compare.load(["llama_cpp"], CASE, "float32", tmp_path, stack) == []
    assert "llama_cpp is left out: [Errno 2] No such file" in capsys.readouterr().err


def test_a_checkpoint_in_16_bits_is_written_once_and_given_to_all(workers, tmp_path, monkeypatch):
    language_model().save_pretrained(tmp_path / "hf")
    monkeypatch.setattr(compare.smollm2, "tokenizer", lambda: SimpleNamespace(save_pretrained=id))
    file, times = tmp_path / "smollm2-bfloat16" / "model.safetensors", set()
    for _ in range(2):
        with ExitStack() as stack:
            found = compare.load(compare.PEERS, CASE, "bfloat16", tmp_path, stack)
        gguf, *folders = (worker.arguments["model"] for worker in found)
        assert gguf == str(tmp_path)
        assert set(folders) == {str(file.parent)}
        times.add(file.stat().st_mtime_ns)
    assert len(times) == 1
    assert {weight.dtype for weight in load_file(file).values()} == {torch.bfloat16}


def test_weights_are_counted_as_they_are_kept(tmp_path, monkeypatch):
    language_model().config.save_pretrained(tmp_path)
    monkeypatch.setattr(compare.smollm2, "lm", lambda: tmp_path)
    wide, narrow = (compare.model_bytes(CASE, kind) for kind in (torch.float32, torch.bfloat16))
    keys_and_values = 2 * (2 + 8 // 2) * 2 * 2 * 8 * 4  # of 6 tokens
    assert wide - keys_and_values == 2 * (narrow - keys_and_values)


def test_every_peer_has_its_requirements():
    folder = Path(compare.__file__).parent
    for name in compare.PEERS:
        assert (folder / f"{name}.py").exists()
        assert (folder / f"{name}.txt").exists() == (name != "ours")


@pytest.mark.parametrize(
    ("batch", "asked"), [("1", ["llama_cpp", "vllm_cpu", "ours"]), ("4", ["vllm_cpu", "ours"])]
)
def test_command_writes_its_table(tmp_path, monkeypatch, capsys, batch, asked):
    def load(peers, case, kept, folder, stack):
        assert list(peers) == asked
        worker = stack.enter_context(stub(tmp_path))
        worker.wait_until_loaded()
        return [worker]

    monkeypatch.setattr(compare, "FOLDER", tmp_path)
    monkeypatch.setattr(compare, "load", load)
    monkeypatch.setattr(compare, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(compare, "model_bytes", lambda *arguments: 10**6)
    monkeypatch.setattr(compare.smollm2, "check_installed", lambda: None)
    monkeypatch.setattr(compare.smollm2, "gguf", lambda: tmp_path / "q4.gguf")
    arguments = ["--types", "float32", "--prompt", "8", "--new-tokens", "8", "--rounds", "2"]
    arguments += ["--batch", batch, "--results", str(tmp_path / "r")]
    assert compare.main(arguments) == 0
    (file,) = (tmp_path / "r").glob("*/peers-*.json")
    document = json.loads(file.read_text())
    assert set(document["types"]["float32"]) == {
        "transformers greedy",
        "stub greedy",
        "other greedy",
    }
    assert file.with_suffix(".md").read_text().count("| stub greedy ") == 1
    assert "stub greedy" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16], ids=str)
def test_ways_on_the_language_models_weights_give_the_pairs_tokens(tmp_path, kept):
    pytest.importorskip("peft")
    copy.deepcopy(language_model()).to(kept).save_pretrained(tmp_path)
    methods = ours.load(str(tmp_path), "float32", torch.get_num_threads(), 40)
    prompts = [tokens(9), tokens(9, seed=1)]
    decoded = {name: methods[name](prompts, 6) for name in (*compare.GUIDED,)}
    assert all(ids == decoded[baselines.ARGS] for ids in decoded.values())
