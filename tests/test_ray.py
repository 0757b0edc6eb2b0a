"""The job on Ray: the same bytes as in one process, also when an actor dies on the way."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lora import adapted
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)
from typer.testing import CliRunner
from vocabularies import unigram

from args_fast.cli import app
from args_fast.tiny_pair import HELDOUT, LM, RM

ray = pytest.importorskip("ray.data", reason="pip install 'args-fast[ray]'")

from args_fast import ray as subject  # noqa: E402

OPTIONS = ("--device", "cpu", "--max-new-tokens", "6", "--max-batch-size", "16")
N = 500


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two actors fit, whatever the machine has."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # what is importable here is so in actors
    # 15 by default: on a busy machine they would starve.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("ray") / "in.jsonl"
    prompts = [json.loads(line)["prompt"] for line in HELDOUT.read_text().splitlines()]
    with open(path, "w") as file:
        for i in range(N):
            record = {"id": i, "prompt": prompts[i % len(prompts)], "seed": i}
            record |= {"temperature": 0.9} if i % 3 == 0 else {}
            file.write("bad\n" if i % 50 == 7 else json.dumps(record) + "\n")
            file.write("\n" if i % 90 == 4 else "")
    return path


def batch(source, output, *more):
    result = CliRunner().invoke(app, ["batch", str(source), str(output), *OPTIONS, *more])
    assert result.exit_code == 1, result.stderr  # there are error records
    return output.read_bytes()


@pytest.fixture(scope="module")
def whole(source):
    return batch(source, source.with_name("whole.jsonl"))


@dataclass(frozen=True)
class Mortal(subject.Pair):
    """Whose actor is killed half-way, once."""

    grave: str = ""

    def load(self):
        decoder = super().load()
        complete = decoder.complete

        def mortal(requests):
            for index, result in complete(requests):
                yield index, result
                if index == 10 and not Path(self.grave).exists():
                    Path(self.grave).touch()
                    os.kill(os.getpid(), 9)

        decoder.complete = mortal
        return decoder


def test_two_actors_write_what_one_process_writes(source, whole, tmp_path):
    assert whole.count(b"\n") == N
    assert batch(source, tmp_path / "out.jsonl", "--ray", "--actors", "2") == whole


def test_job_begun_in_one_process_resumes_on_ray(source, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    batch(source, output, "--unordered")
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[::3]) + lines[1][:9])  # some of every slice, and a torn one
    after = batch(source, output, "--unordered", "--ray", "--actors", "2").splitlines(keepends=True)
    assert after[: len(lines[::3])] == lines[::3]
    assert sorted(after) == sorted(whole.splitlines(keepends=True))


def test_actor_killed_half_way_changes_nothing(source, whole, tmp_path, monkeypatch):
    grave = tmp_path / "grave"
    ray_pickle = sys.modules["ray"].cloudpickle
    ray_pickle.register_pickle_by_value(sys.modules[__name__])
    try:
        monkeypatch.setattr(
            subject, "Pair", lambda *arguments: Mortal(*arguments, grave=str(grave))
        )
        after = batch(source, tmp_path / "out.jsonl", "--ray", "--actors", "2")
    finally:
        ray_pickle.unregister_pickle_by_value(sys.modules[__name__])
    assert grave.exists()
    assert after == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lm", LM, "--rm", LM), "an actor failed: cannot load the models: the reward model"),
        (("--device", "cuda:1"), "device is 'cuda:1'; with --ray it must be auto"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(source, tmp_path, options, words):
    arguments = ["batch", source, tmp_path / "out.jsonl", "--ray", *OPTIONS, *options]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {words}")


def test_pipe_is_not_an_input_for_actors(tmp_path):
    line = json.dumps({"prompt": "a"})
    result = CliRunner().invoke(
        app, ["batch", "-", str(tmp_path / "out.jsonl"), "--ray"], input=line
    )
    assert result.exit_code == 2
    assert "needs a file, not a pipe" in result.stderr


def test_actors_guide_by_several_kinds_of_reward(source, tmp_path):
    """All that a folder or a function can be: a classifier, the same with closing ids, an adapter,
    an encoder, a decoder with another tokenizer and a function, mixed by each line."""
    own, other = AutoTokenizer.from_pretrained(LM), unigram()
    torch.manual_seed(3)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    shape = size | {"num_hidden_layers": 2, "num_labels": 1}
    encoder = BertForSequenceClassification(BertConfig(**shape, vocab_size=len(own)))
    second = LlamaConfig(**shape, vocab_size=len(other), pad_token_id=0)
    adapter = adapted(AutoModelForCausalLM.from_pretrained(LM))
    adapter.peft_config["default"].base_model_name_or_path = str(LM)
    saved = {
        "encoder": (encoder, own),
        "second": (LlamaForSequenceClassification(second), other),
        "adapter": (adapter,),
    }
    for name, parts in saved.items():
        for part in parts:
            part.save_pretrained(tmp_path / name)
    folders = {"plain": RM, "closed": RM} | {name: tmp_path / name for name in saved}
    rewards = [option for name in folders for option in ("--rm", f"{name}={folders[name]}")]
    rewards += ["--rm-closing", "closed=5,6", "--reward-function", "short=text_rewards:short"]
    kinds = ["--lm", str(LM), *rewards]
    mixtures = [{"plain": 1}, {"closed": 0.5, "short": 0.2}, {"encoder": 2}, {"short": 0.1}, None]
    mixtures += [{"adapter": 0.3}, {"second": 1, "plain": 0.5}]
    lines = [json.loads(line) for line in source.read_text().splitlines() if line.startswith("{")]
    mixed = tmp_path / "mixed.jsonl"
    with open(mixed, "w") as file:
        for i, line in enumerate(lines[:60]):
            reward = mixtures[i % len(mixtures)]
            file.write(json.dumps(line | ({"reward": reward} if reward else {})) + "\n")
        file.write("bad\n")
    alone = batch(mixed, tmp_path / "alone.jsonl", *kinds)
    assert alone.count(b'"text"') == 60
    assert batch(mixed, tmp_path / "out.jsonl", *kinds, "--ray", "--actors", "2") == alone
