"""A result names the content of its models, not only where they lay."""

import shutil
import subprocess

from args_fast.eval import provenance
from args_fast.eval.provenance import commit, environment, model_hash
from args_fast.tiny_pair import LM, RM


def test_the_hash_is_of_the_content(tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(LM, copy)
    assert model_hash(str(copy)) == model_hash(str(LM))
    assert model_hash(str(RM)) != model_hash(str(LM))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_hash(str(copy)) != model_hash(str(LM))


def test_a_model_that_is_nowhere_has_no_hash():
    assert model_hash("no/such-model-anywhere") is None


def test_environment_names_versions_and_the_machine():
    made = environment()
    assert {"args-fast", "python", "torch", "transformers"} <= set(made["versions"])
    assert made["processor"]
    assert made["commit"] == commit()


def test_commit_says_where_files_of_the_checkout_differ(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert commit() is None
    file = tmp_path / "elsewhere.py"
    file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert len(commit()) == 40
    (package / "result.json").write_text("what was not committed does not run")
    assert len(commit()) == 40
    file.write_text("2")
    assert commit().endswith("-dirty")
